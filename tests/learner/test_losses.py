"""Every objective against a slow, obvious version in float64, over normal and extreme inputs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from learner.losses import async_objective, batch_loss, dapo, grpo, topr
from learner.losses.aggregate import AGGREGATIONS
from learner.losses.objectives import OBJECTIVES, Objective, objective_of
from learner.losses.tally import Tally
from learner.losses.terms import second_moment_mask
from learner.losses.tokens import kept_tokens, token_losses
from learner.tables import ObjectiveTable

INF, NAN = float("inf"), float("nan")


def slow(
    o: Objective,
    logprobs: list[list[float]],
    behavior: list[list[float]],
    advantages: list[float],
    mask: list[list[bool]],
    reference: list[list[float]] | None = None,
) -> float:
    """The objective by the book, token by token; a token with a non-finite number is left out, its weight is not given away."""
    lengths = [sum(row) for row in mask]
    total = 0.0
    logs: list[list[float]] = []  # of each sequence: the log-ratios of its tokens that count
    for i, row in enumerate(mask):
        ref = reference[i] if reference is not None else [0.0] * len(row)
        whole = [
            t
            for t, on in enumerate(row)
            if on and all(map(math.isfinite, (logprobs[i][t], behavior[i][t], advantages[i], ref[t])))
        ]
        logs.append([max(-60.0, min(60.0, logprobs[i][t] - behavior[i][t])) for t in whole])
    dropped = slow_second_moment(o, logprobs, behavior, advantages, mask)
    for i, row in enumerate(mask):
        for t, counts in enumerate(row):
            lp, mu, a = logprobs[i][t], behavior[i][t], advantages[i]
            if reference is not None and o.kl_in == "reward" and math.isfinite(lp) and math.isfinite(reference[i][t]):
                a -= o.kl * slow_divergence(o, lp, reference[i][t])
            numbers = (lp, mu, a) if reference is None else (lp, mu, a, reference[i][t])
            if not counts or not all(map(math.isfinite, numbers)):
                continue
            log_w = max(-60.0, min(60.0, lp - mu))
            w = math.exp(log_w)
            if o.term.__name__ == "_ppo":
                loss = max(-a * w, -a * min(max(w, 1 - o.clip_low), 1 + o.clip_high))
                if o.dual_clip is not None and a < 0:
                    loss = min(loss, -o.dual_clip * a)
            elif o.term.__name__ == "_tapered":
                loss = -(1.0 if a > 0 else min(w, 1.0)) * a * lp
            elif o.term.__name__ == "_capped":
                loss = -min(w, o.weight_cap) * a * lp
            elif o.term.__name__ == "_capped_sequence":
                most = o.weight_tokens or len(logs[i])
                whole_w = sum(logs[i]) * min(1.0, most / len(logs[i]))
                loss = -min(math.exp(max(-60.0, min(60.0, whole_w))), o.weight_cap) * a * lp
            elif o.term.__name__ == "_banded":
                loss = -(w if 1 - o.clip_low <= w <= 1 + o.clip_high else 0.0) * a * lp
            elif o.term.__name__ == "_sequence_clip":
                s = math.exp(sum(logs[i]) / len(logs[i]))
                loss = max(-a * s, -a * min(max(s, 1 - o.clip_low), 1 + o.clip_high))
            else:
                moved = math.exp(lp) - math.exp(mu)
                gone = (a > 0 and moved > o.trust) or (a < 0 and moved < -o.trust)
                loss = (0.0 if gone else -min(w, o.weight_cap) * a * lp) + o.tau * log_w**2
            if (i, t) in dropped:
                loss = 0.0
            if o.opsm is not None and a < 0 and -sum(logs[i]) / len(logs[i]) > o.opsm:
                loss = 0.0
            if reference is not None and o.kl_in == "loss":
                loss += o.kl * slow_divergence(o, lp, reference[i][t])
            weight = {
                "sequence_mean": 1 / (len(mask) * max(1, lengths[i])),
                "token_mean": 1 / max(1, sum(lengths)),
                "constant": 1 / (len(mask) * o.constant_length),
            }[o.aggregation]
            total += weight * loss
    return total


def slow_divergence(o: Objective, lp: float, ref: float) -> float:
    q = max(-20.0, min(20.0, ref - lp))
    return {"k1": -q, "k2": q * q / 2, "k3": min(10.0, math.exp(q) - q - 1)}[o.kl_kind]


def slow_second_moment(
    o: Objective,
    logprobs: list[list[float]],
    behavior: list[list[float]],
    advantages: list[float],
    mask: list[list[bool]],
) -> set[tuple[int, int]]:
    """The tokens that M2PO leaves out: one at a time, the one that moved furthest away first."""
    away = {}
    for i, row in enumerate(mask):
        for t, counts in enumerate(row):
            numbers = (logprobs[i][t], behavior[i][t], advantages[i])
            if counts and all(map(math.isfinite, numbers)):
                log_w = max(-60.0, min(60.0, numbers[0] - numbers[1]))
                if log_w * advantages[i] > 0:
                    away[i, t] = log_w**2
    dropped: set[tuple[int, int]] = set()
    while o.second_moment is not None and away and sum(away.values()) / len(away) > o.second_moment:
        worst = max(away, key=lambda place: away[place])
        dropped.add(worst)
        del away[worst]
    return dropped


VARIANTS = [
    *OBJECTIVES.values(),
    replace(OBJECTIVES["grpo"], dual_clip=3.0),
    replace(OBJECTIVES["grpo"], aggregation="constant", constant_length=77, advantage_std="none"),
    replace(OBJECTIVES["dppo"], aggregation="sequence_mean", weight_cap=1.0, tau=0.1),
    replace(OBJECTIVES["async"], weight_tokens=4),
    replace(OBJECTIVES["gspo"], clip_low=0.2, clip_high=0.3),
    replace(OBJECTIVES["grpo"], opsm=0.05),
    replace(OBJECTIVES["grpo"], kl_kind="k2"),
    replace(OBJECTIVES["grpo"], kl_kind="k1", kl_in="reward"),
    replace(OBJECTIVES["async"], kl_kind="k3", kl_in="reward"),
    replace(OBJECTIVES["dapo"], second_moment=0.02),
]
VARIANTS = [replace(o, kl=0.0) for o in VARIANTS]  # a reference policy has a test of its own
DIFFERENTIABLE = {"_ppo", "_sequence_clip"}  # elsewhere the weight is a constant to the gradient


def batch(seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    logprobs = -torch.rand(6, 9, generator=g, dtype=torch.float64) * 4
    behavior = (logprobs + torch.randn(6, 9, generator=g, dtype=torch.float64) * spread).clamp(max=0)
    advantages = torch.randn(6, generator=g, dtype=torch.float64)
    mask = torch.rand(6, 9, generator=g) < 0.7
    mask[2] = False
    return logprobs, behavior, advantages, mask


@pytest.mark.parametrize("objective", VARIANTS)
@pytest.mark.parametrize("spread", [0.0, 0.3, 20.0])
def test_against_the_slow_version(objective: Objective, spread: float) -> None:
    for seed in range(3):
        logprobs, behavior, advantages, mask = batch(seed, spread)
        loss, _ = batch_loss(objective, logprobs, behavior, advantages, mask)
        assert loss.item() == pytest.approx(
            slow(objective, logprobs.tolist(), behavior.tolist(), advantages.tolist(), mask.tolist()),
            rel=1e-9,
            abs=1e-12,
        )


@pytest.mark.parametrize("objective", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratios_from_1e_minus_20_to_1e20(objective: Objective, dtype: torch.dtype) -> None:
    log_w = torch.tensor([[-46.05, -20.0, -1.0, -1e-7, 0.0], [1e-7, 1.0, 20.0, 46.05, 80.0]], dtype=dtype)
    behavior = torch.full_like(log_w, -0.25) - log_w.clamp(min=0)
    logprobs = (behavior + log_w).requires_grad_()
    for sign in (1.0, -1.0):
        logprobs.grad = None
        advantages, mask = torch.tensor([sign, 0.5 * sign], dtype=dtype), torch.ones(2, 5, dtype=torch.bool)
        loss, metrics = batch_loss(objective, logprobs, behavior, advantages, mask)
        loss.backward()
        wanted = slow(objective, logprobs.tolist(), behavior.tolist(), advantages.tolist(), mask.tolist())
        assert loss.item() == pytest.approx(wanted, rel=1e-4 if dtype == torch.float32 else 1e-9)
        assert logprobs.grad is not None and torch.isfinite(logprobs.grad).all()
        assert all(map(math.isfinite, metrics.values()))


@pytest.mark.parametrize("objective", VARIANTS)
def test_with_a_reference_policy(objective: Objective) -> None:
    objective = replace(objective, kl=0.3)
    for seed, spread in ((0, 0.3), (1, 30.0)):
        logprobs, behavior, advantages, mask = batch(seed, 0.3)
        reference = (
            logprobs + torch.randn(6, 9, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * spread
        )
        reference[~mask] = NAN
        row, column = mask.nonzero()[2].tolist()
        reference[row, column] = -INF
        leaf = logprobs.clone().requires_grad_()
        loss, metrics = batch_loss(objective, leaf, behavior, advantages, mask, reference)
        loss.backward()
        lists = (x.tolist() for x in (logprobs, behavior, advantages, mask, reference))
        assert loss.item() == pytest.approx(slow(objective, *lists), rel=1e-9)
        assert leaf.grad is not None and torch.isfinite(leaf.grad).all() and leaf.grad[row, column] == 0
        assert metrics["tokens_invalid"] == 1
    with pytest.raises(ValueError, match=r"kl = 0\.3 needs .* reference"):
        batch_loss(objective, logprobs, behavior, advantages, mask)


@pytest.mark.parametrize("name", ["grpo", "dapo", "async", "drgrpo"])
def test_an_entropy_bonus_is_the_mean_entropy_by_the_aggregation(name: str) -> None:
    plain, objective = replace(OBJECTIVES[name], kl=0.0), replace(OBJECTIVES[name], kl=0.0, entropy_bonus=0.3)
    logprobs, behavior, advantages, mask = batch(3, 0.3)
    entropy = torch.rand(6, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 3
    entropy[~mask] = NAN
    leaf = entropy.clone().requires_grad_()
    loss, _ = batch_loss(objective, logprobs, behavior, advantages, mask, entropy_NT=leaf)
    loss.backward()
    without = slow(plain, logprobs.tolist(), behavior.tolist(), advantages.tolist(), mask.tolist())
    weights, total = AGGREGATIONS[objective.aggregation](mask.sum(1).double(), objective.constant_length), 0.0
    for i, row in enumerate(mask.tolist()):
        total += sum(0.3 * weights[i].item() * entropy[i, t].item() for t, counts in enumerate(row) if counts)
    assert loss.item() == pytest.approx(without - total, rel=1e-9)
    assert leaf.grad is not None and torch.allclose(leaf.grad, torch.where(mask, -0.3 * weights[:, None], 0.0))

    entropy[tuple(mask.nonzero()[1].tolist())] = INF
    loss, metrics = batch_loss(objective, logprobs, behavior, advantages, mask, entropy_NT=entropy)
    assert math.isfinite(loss.item()) and metrics["tokens_invalid"] == 1
    with pytest.raises(ValueError, match=r"entropy_bonus = 0\.3 needs"):
        batch_loss(objective, logprobs, behavior, advantages, mask)


@pytest.mark.parametrize("objective", [*VARIANTS, replace(OBJECTIVES["async"], kl=0.1)])
def test_micro_batches_packing_and_order_change_nothing(objective: Objective) -> None:
    """The same tokens, flat and shuffled, whole sequences a micro-batch: the same loss, gradients and metrics."""
    logprobs, behavior, advantages, mask = batch(5, 0.4)
    reference = logprobs.roll(1, 0) if objective.kl else None
    whole = logprobs.clone().requires_grad_()
    wanted, metrics = batch_loss(objective, whole, behavior, advantages, mask, reference)
    wanted.backward()
    weights = AGGREGATIONS[objective.aggregation](mask.sum(1).double(), objective.constant_length)
    kept = kept_tokens(objective, logprobs, behavior, advantages[:, None].expand_as(logprobs), mask)
    parts, total, tally = logprobs.clone().requires_grad_(), 0.0, Tally()
    for rows in ([4], [5, 0], [2, 3, 1]):
        where = torch.zeros_like(mask)
        where[rows] = mask[rows]
        index = where.nonzero()
        r, c = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(1))].unbind(1)
        tokens = token_losses(
            objective,
            parts[r, c],
            behavior[r, c],
            advantages[r],
            r >= 0,
            None if reference is None else reference[r, c],
            r,
            kept[r, c],
        )
        loss = (tokens.loss * weights[r]).sum()
        loss.backward()
        total += loss.item()
        tally.add(tokens, r)
    assert total == pytest.approx(wanted.item(), abs=1e-12)
    assert torch.allclose(parts.grad, whole.grad, atol=1e-12)
    assert tally.result() == pytest.approx(metrics, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    """1,000 tokens: in half precision neither their count nor the ratio would be right."""
    logprobs = (torch.linspace(-3, -0.01, 1000)[None].to(dtype)).requires_grad_()
    behavior = (logprobs.detach().float() - 0.01).to(dtype)
    half, _ = dapo(logprobs, behavior, torch.tensor([1.0]), torch.ones(1, 1000))
    exact, _ = dapo(logprobs.detach().float(), behavior.float(), torch.tensor([1.0]), torch.ones(1, 1000))
    assert half.dtype == torch.float32 and half.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("objective", VARIANTS)
def test_what_is_masked_or_not_finite_reaches_no_gradient(objective: Objective) -> None:
    logprobs, behavior, advantages, mask = batch(1, 0.3)
    reference, _ = batch_loss(objective, logprobs, behavior, advantages, mask)
    bad = [NAN, INF, -INF]
    for i, (r, c) in enumerate((~mask).nonzero().tolist()):
        logprobs[r, c], behavior[r, c] = bad[i % 3], bad[(i + 1) % 3]
    leaf = logprobs.clone().requires_grad_()
    loss, metrics = batch_loss(objective, leaf, behavior, advantages, mask)
    loss.backward()
    assert leaf.grad is not None and torch.isfinite(leaf.grad).all() and (leaf.grad[~mask] == 0).all()
    assert loss.item() == pytest.approx(reference.item())
    assert metrics["tokens_invalid"] == 0
    row, column = mask.nonzero()[0].tolist()
    behavior[row, column] = NAN
    leaf = logprobs.clone().requires_grad_()
    loss, metrics = batch_loss(objective, leaf, behavior, advantages, mask)
    loss.backward()
    assert metrics["tokens_invalid"] == 1 and leaf.grad[row, column] == 0 and torch.isfinite(leaf.grad).all()
    assert loss.item() == pytest.approx(
        slow(objective, logprobs.tolist(), behavior.tolist(), advantages.tolist(), mask.tolist())
    )


@pytest.mark.parametrize("objective", VARIANTS)
def test_huge_ratios_stay_finite_and_the_asynchronous_default_bounded(objective: Objective) -> None:
    logprobs = torch.tensor([[-0.1, -46.0], [-0.1, -46.0]], dtype=torch.float32, requires_grad=True)
    behavior = torch.tensor([[-46.0, -0.1], [-46.0, -0.1]])
    loss, _ = batch_loss(objective, logprobs, behavior, torch.tensor([1.0, -1.0]), torch.ones(2, 2, dtype=torch.bool))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logprobs.grad).all()
    if objective.term.__name__ not in DIFFERENTIABLE:
        assert logprobs.grad.abs().max() < 40


@pytest.mark.parametrize("objective", VARIANTS)
def test_an_empty_mask_gives_zero_with_a_gradient_of_zero(objective: Objective) -> None:
    logprobs = torch.full((2, 3), NAN, requires_grad=True)
    loss, metrics = batch_loss(
        objective, logprobs, torch.zeros(2, 3), torch.ones(2), torch.zeros(2, 3, dtype=torch.bool)
    )
    loss.backward()
    assert loss.item() == 0 and (logprobs.grad == 0).all() and metrics["tokens_trained"] == 0


@pytest.mark.parametrize("objective", VARIANTS)
def test_gradients_by_finite_differences(objective: Objective) -> None:
    logprobs, behavior, advantages, mask = batch(4, 0.05)
    if objective.term.__name__ not in DIFFERENTIABLE:  # differentiate at the constant weight
        ratio, up = (logprobs - behavior).exp(), advantages[:, None] > 0
        moved = logprobs.exp() - behavior.exp()
        gone = (up & (moved > objective.trust)) | (~up & (moved < -objective.trust))
        weight, tau = ratio.clamp(max=objective.weight_cap).masked_fill(gone, 0), objective.tau
        if objective.term.__name__ == "_tapered":
            weight, tau = torch.where(up, 1.0, ratio.clamp(max=1.0)), 0.0
        elif objective.term.__name__ == "_capped":
            weight, tau = ratio.clamp(max=objective.weight_cap), 0.0
        elif objective.term.__name__ == "_capped_sequence":
            log_w, length = ((logprobs - behavior) * mask).sum(1, keepdim=True), mask.sum(1, keepdim=True).clamp(min=1)
            whole = (log_w * ((objective.weight_tokens or 99) / length).clamp(max=1)).exp().expand_as(ratio)
            weight, tau = whole.clamp(max=objective.weight_cap), 0.0
        elif objective.term.__name__ == "_banded":
            outside = (ratio < 1 - objective.clip_low) | (ratio > 1 + objective.clip_high)
            weight, tau = ratio.masked_fill(outside, 0), 0.0
        lengths = mask.sum(1)
        share = {"token_mean": 1 / lengths.sum() * torch.ones(6), "sequence_mean": 1 / (6 * lengths.clamp(min=1))}[
            objective.aggregation
        ]

        def value(x: torch.Tensor) -> torch.Tensor:
            return ((-weight * advantages[:, None] * x + tau * (x - behavior) ** 2) * mask * share[:, None]).sum()
    else:

        def value(x: torch.Tensor) -> torch.Tensor:
            return batch_loss(objective, x, behavior, advantages, mask)[0]

    leaf = logprobs.clone().requires_grad_()
    batch_loss(objective, leaf, behavior, advantages, mask)[0].backward()
    step = 1e-6
    for r, c in mask.nonzero()[::3].tolist():
        up, down = logprobs.clone(), logprobs.clone()
        up[r, c] += step
        down[r, c] -= step
        assert leaf.grad[r, c].item() == pytest.approx(((value(up) - value(down)) / (2 * step)).item(), abs=1e-7)


def test_metrics_tell_what_was_clipped() -> None:
    logprobs = torch.log(torch.tensor([[0.9, 0.1, 0.5]]))
    behavior = torch.log(torch.tensor([[0.5, 0.1, 0.5]]))
    up, down, every = torch.tensor([1.0]), torch.tensor([-1.0]), torch.ones(1, 3)
    _, metrics = grpo(logprobs, behavior, up, every)
    assert metrics["clip_fraction_high"] == pytest.approx(1 / 3) and metrics["clip_fraction_low"] == 0
    assert metrics["masked_fraction"] == pytest.approx(1 / 3)
    assert metrics["importance_ratio_max"] == pytest.approx(1.8) and metrics["importance_ratio_capped_max"] == 1.0
    assert grpo(behavior, logprobs, down, every)[1]["clip_fraction_low"] == pytest.approx(1 / 3)
    assert grpo(logprobs, behavior, down, every, dual_clip=1.5)[1]["clip_fraction_dual"] == pytest.approx(1 / 3)
    masked = replace(OBJECTIVES["dppo"], trust=0.3)
    assert batch_loss(masked, logprobs, behavior, up, every)[1]["clip_fraction_high"] == pytest.approx(1 / 3)
    _, metrics = async_objective(logprobs, behavior, up, every, weight_cap=1.5)
    assert metrics["capped_fraction"] == 1.0 and metrics["importance_ratio_capped_mean"] == 1.5, "the whole sequence's"
    assert async_objective(logprobs, behavior, up, every, weight_cap=1.5, weight_tokens=1)[1]["capped_fraction"] == 0
    assert dapo(logprobs, behavior, up, every)[1]["clip_fraction_high"] == pytest.approx(1 / 3)
    _, metrics = topr(logprobs, behavior, down, every)
    assert metrics["capped_fraction"] == pytest.approx(1 / 3) and metrics["importance_ratio_capped_mean"] == 1.0
    assert topr(logprobs, behavior, up, every)[1]["capped_fraction"] == 0


def test_metrics_against_their_definitions() -> None:
    logprobs, behavior, advantages, mask = batch(7, 0.5)
    _, metrics = grpo(logprobs, behavior, advantages, mask)
    w = (logprobs - behavior).exp()
    rows = [w[i][mask[i]] for i in range(6) if mask[i].any()]
    every = torch.cat(rows)
    products = torch.stack([row.prod() for row in rows])
    clipped = ((advantages > 0)[:, None] & (w > 1.2)) | ((advantages < 0)[:, None] & (w < 0.8))
    gone = [bool(clipped[i][mask[i]].all()) for i in range(6) if mask[i].any()]
    wanted = {
        "tokens_trained": len(every),
        "importance_ratio_mean": every.mean(),
        "importance_ratio_max": every.max(),
        "importance_ratio_capped_mean": (w * ~clipped)[mask].mean(),
        "kl_behavior": (every - 1 - every.log()).mean(),
        "k1_behavior": -every.log().mean(),
        "chi2": ((every - 1) ** 2).mean(),
        "masked_fraction": clipped[mask].double().mean(),
        "masked_sequence_fraction": sum(gone) / len(gone),
        "ess_ratio": every.sum() ** 2 / (len(every) * (every**2).sum()),
        "ess_ratio_sequence": products.sum() ** 2 / (len(rows) * (products**2).sum()),
    }
    assert {name: metrics[name] for name in wanted} == pytest.approx({k: float(v) for k, v in wanted.items()})
    assert not {"entropy", "staleness_mean", "mismatch"} & metrics.keys(), "nothing is reported that is not known"


def test_mismatch_is_of_fresh_tokens_alone() -> None:
    logprobs, behavior, advantages, mask = batch(7, 0.5)
    tokens = token_losses(OBJECTIVES["grpo"], logprobs, behavior, advantages[:, None].expand_as(mask), mask)
    staleness = torch.arange(6)[:, None].expand_as(mask) - 1
    tally = Tally()
    tally.add(tokens, staleness, staleness, torch.full_like(logprobs, 0.5))
    found = tally.result()
    fresh = (logprobs - behavior).abs()[1][mask[1]]
    assert found["mismatch"] == pytest.approx(float(fresh.mean())) and found["entropy"] == pytest.approx(0.5)
    assert (
        found["staleness_mean"] == pytest.approx(float(staleness[mask].double().mean())) and found["staleness_max"] == 4
    )


def test_the_second_moment_keeps_what_does_not_move_away() -> None:
    log_w = torch.tensor([[0.5, 0.1, -0.9, NAN], [0.3, -0.3, -0.1, 0.2]])
    advantages = torch.tensor([[1.0], [-1.0]]).expand_as(log_w)
    used = torch.isfinite(log_w)
    # away: .5, .1 of the first, -.3, -.1 of the second; .25, .09, .01, .01 have the means .09, .037, .01, .01
    assert second_moment_mask(log_w, advantages, used, 0.04).tolist() == [[False, True, True, True], [True] * 4]
    assert second_moment_mask(log_w, advantages, used, 0.02).tolist() == [
        [False, True, True, True],
        [True, False, True, True],
    ]
    assert second_moment_mask(log_w, advantages, used, 0.1).all()
    assert second_moment_mask(log_w[:0], advantages[:0], used[:0], 0.1).shape == (0, 4)


def test_the_reference_divergence_is_clamped() -> None:
    logprobs = torch.tensor([[-30.0, -0.5]], requires_grad=True)
    loss, metrics = grpo(
        logprobs,
        logprobs.detach(),
        torch.tensor([0.0]),
        torch.ones(1, 2),
        kl=1.0,
        ref_logprobs_NT=torch.tensor([[-0.1, -0.5]]),
    )
    loss.backward()
    assert loss.item() == pytest.approx(10 / 2) and torch.isfinite(logprobs.grad).all()
    assert metrics["kl_reference"] == pytest.approx(5.0)


def test_shapes_that_do_not_agree_are_named() -> None:
    with pytest.raises(ValueError, match=r"advantages \(3,\)"):
        grpo(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3), torch.ones(2, 3))


def test_the_run_file_replaces_single_values() -> None:
    objective = objective_of(ObjectiveTable(name="dapo", clip_high=0.4, aggregation="constant", constant_length=9))
    assert (objective.clip_low, objective.clip_high, objective.aggregation, objective.constant_length) == (
        0.2,
        0.4,
        "constant",
        9,
    )
    assert objective_of(ObjectiveTable(name="dppo", tau=0.0)).regularises is False


def test_published_settings_stand_behind_the_names() -> None:
    r1 = objective_of(ObjectiveTable(name="r1"))
    assert (r1.clip_low, r1.clip_high, r1.kl, r1.aggregation, r1.advantage_std) == (
        10,
        10,
        1e-3,
        "sequence_mean",
        "population",
    )
    assert objective_of(ObjectiveTable(name="r1", kl=0.0)).kl == 0 and ObjectiveTable(name="r1").ref_refresh == 400
    assert objective_of(ObjectiveTable(name="drgrpo")).advantage_std == "none"
    assert objective_of(ObjectiveTable(name="rloo")).advantage_baseline == "leave_one_out"


def test_a_sequence_is_on_or_off_as_a_whole() -> None:
    behavior = torch.full((2, 4), -1.0)
    logprobs = (behavior + torch.tensor([[0.1], [0.5]])).requires_grad_()
    loss, metrics = batch_loss(
        OBJECTIVES["gspo"], logprobs, behavior, torch.tensor([1.0, -1.0]), torch.ones(2, 4, dtype=torch.bool)
    )
    loss.backward()
    assert (logprobs.grad[0] == 0).all() and (logprobs.grad[1] > 0).all() and metrics["clip_fraction_high"] == 0.5
    stale = (behavior - torch.tensor([[0.2], [0.01]])).requires_grad_()
    masked = replace(OBJECTIVES["grpo"], opsm=0.1, clip_low=0.9)
    batch_loss(masked, stale, behavior, torch.tensor([-1.0, -1.0]), torch.ones(2, 4, dtype=torch.bool))[0].backward()
    assert (stale.grad[0] == 0).all() and (stale.grad[1] != 0).all()
