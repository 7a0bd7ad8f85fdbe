"""Every objective against a slow, obvious version in float64, over normal and extreme inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import pytest
import torch

from learner.losses import async_objective, batch_loss, dapo, grpo, table, topr
from learner.losses.aggregate import AGGREGATIONS
from learner.losses.decoupled import Decoupled
from learner.losses.divergence import k2, k3
from learner.losses.objectives import OBJECTIVES, Objective
from learner.losses.ppo import PpoClip, SequenceClip
from learner.losses.second_moment import second_moment_mask
from learner.losses.table import ObjectiveTable, objective_of
from learner.losses.tally import Tally
from learner.losses.tokens import TokenBatch, kept_tokens, token_losses
from learner.losses.trust import Trust
from learner.losses.weighted import Banded, Capped, CappedSequence, Tapered, Tempered

INF, NAN = float("inf"), float("nan")
Rows = list[list[float]]


@dataclass(frozen=True)
class Token:
    """One token by the book. ``whole``: log w of all tokens of its sequence that count; ``rhos``: log rho of them."""

    lp: float
    mu: float
    prox: float
    a: float
    whole: list[float]
    rhos: list[float]

    @property
    def log_w(self) -> float:
        return cut(self.lp - self.mu)

    @property
    def w(self) -> float:
        return math.exp(self.log_w)


def cut(x: float) -> float:
    return max(-60.0, min(60.0, x))


def slow_clip(ratio: float, a: float, low: float, high: float, dual: float) -> float:
    loss = max(-a * ratio, -a * min(max(ratio, 1 - low), 1 + high))
    return min(loss, -dual * a) if dual and a < 0 else loss


def slow_ppo(o: PpoClip, t: Token) -> float:
    ratio = math.exp(cut(t.lp - t.prox)) if o.anchor == "prox" else t.w
    return slow_clip(ratio, t.a, o.low, o.high, o.dual)


def slow_sequence_clip(o: SequenceClip, t: Token) -> float:
    return slow_clip(math.exp(sum(t.whole) / len(t.whole)), t.a, o.low, o.high, 0.0)


def slow_decoupled(o: Decoupled, t: Token) -> float:
    rho = math.exp(cut(t.prox - t.mu) if o.level == "token" else cut(sum(t.rhos)))
    kept = min(max(rho, o.least), o.most) if o.outside == "cap" else rho * (o.least <= rho <= o.most)
    return kept * slow_clip(math.exp(cut(t.lp - t.prox)), t.a, o.low, o.high, o.dual)


def weight_capped(o: Capped, t: Token) -> float:
    return min(t.w, o.cap)


def weight_capped_sequence(o: CappedSequence, t: Token) -> float:
    scale = min(1.0, o.tokens / len(t.whole)) if o.tokens else 1.0
    return min(math.exp(cut(sum(t.whole) * scale)), o.cap)


def weight_tempered(o: Tempered, t: Token) -> float:
    others = list(t.whole)
    others.remove(min(others, key=lambda x: abs(x - math.log(t.w))))
    kl, log_c = sum(math.expm1(x) - x for x in others), sum(others)
    deviation, kept = math.sqrt(2 * kl), 1.0
    if deviation > o.spread:
        log_c, deviation = o.spread * (log_c + kl) / deviation - o.spread**2 / 2, o.spread
    if deviation:
        law = NormalDist(-(deviation**2) / 2, deviation)
        above = law.mean + deviation**2  # the mean of log C, each counted with its C
        kept = NormalDist(above, deviation).cdf(math.log(o.cap)) + o.cap * (1 - law.cdf(math.log(o.cap)))
    return min(t.w, o.cap) * min(math.exp(cut(log_c)), o.cap) / kept


def weight_banded(o: Banded, t: Token) -> float:
    return t.w if 1 - o.low <= t.w <= 1 + o.high else 0.0


def weight_tapered(o: Tapered, t: Token) -> float:
    return 1.0 if t.a > 0 else min(t.w, 1.0)


def weight_trust(o: Trust, t: Token) -> float:
    moved = math.exp(t.lp) - math.exp(t.mu)
    gone = (t.a > 0 and moved > o.trust) or (t.a < 0 and moved < -o.trust)
    return 0.0 if gone else min(t.w, o.cap)


SLOW: dict[type, Callable[[Any, Token], float]] = {
    PpoClip: slow_ppo,
    SequenceClip: slow_sequence_clip,
    Decoupled: slow_decoupled,
}
"""The loss of a token, for the terms whose ratio is differentiated."""
WEIGHT: dict[type, Callable[[Any, Token], float]] = {
    Capped: weight_capped,
    CappedSequence: weight_capped_sequence,
    Tempered: weight_tempered,
    Banded: weight_banded,
    Tapered: weight_tapered,
    Trust: weight_trust,
}
"""The weight of a token, for the terms in which it is a constant to the gradient."""


def slow_term(o: Objective, t: Token) -> float:
    kind = type(o.term)
    if kind in SLOW:
        return SLOW[kind](o.term, t)
    return -WEIGHT[kind](o.term, t) * t.a * t.lp + getattr(o.term, "tau", 0.0) * t.log_w**2


@dataclass(frozen=True)
class Case:
    """A padded batch, as lists."""

    logprobs: Rows
    behavior: Rows
    advantages: list[float]
    mask: list[list[bool]]
    reference: Rows | None = None
    prox: Rows | None = None
    teacher: Rows | None = None


def slow(
    o: Objective,
    logprobs: Rows,
    behavior: Rows,
    advantages: list[float],
    mask: list[list[bool]],
    reference: Rows | None = None,
    prox: Rows | None = None,
    teacher: Rows | None = None,
) -> float:
    """The objective by the book, token by token; a token with a non-finite number is left out, its weight is not given away."""
    case = Case(logprobs, behavior, advantages, mask, reference, prox, teacher)
    lengths = [sum(row) for row in mask]
    dropped = slow_second_moment(o, logprobs, behavior, advantages, mask)
    total = 0.0
    for i, row in enumerate(mask):
        counted = [t for t, on in enumerate(row) if on and counts(o, case, i, t)]
        for t in counted:
            token = slow_token(o, case, i, t, counted)
            loss = 0.0 if (i, t) in dropped else slow_term(o, token)
            if o.opsm and token.a < 0 and -sum(token.whole) / len(token.whole) > o.opsm:
                loss = 0.0
            if reference is not None and o.kl_in == "loss":
                loss += o.kl * slow_divergence(o, token.lp, reference[i][t])
            weight = {
                "sequence_mean": 1 / (len(mask) * max(1, lengths[i])),
                "token_mean": 1 / max(1, sum(lengths)),
                "constant": 1 / (len(mask) * o.constant_length),
            }[o.aggregation]
            total += weight * loss
    return total


def counts(o: Objective, case: Case, i: int, t: int) -> bool:
    """Whether all numbers that the objective reads of a token are finite."""
    numbers = [case.logprobs[i][t], case.behavior[i][t], case.advantages[i]]
    numbers += [case.reference[i][t]] if case.reference is not None else []
    numbers += [case.prox[i][t]] if case.prox is not None and o.uses_prox else []
    numbers += [case.teacher[i][t]] if case.teacher is not None else []
    return all(map(math.isfinite, numbers))


def slow_token(o: Objective, case: Case, i: int, t: int, counted: list[int]) -> Token:
    lp, mu, a = case.logprobs[i], case.behavior[i], case.advantages[i]
    prox = case.prox[i] if case.prox is not None else lp
    if case.reference is not None and o.kl_in == "reward":
        a -= o.kl * slow_divergence(o, lp[t], case.reference[i][t])
    if case.teacher is not None:
        a -= o.distill * max(-20.0, min(20.0, lp[t] - case.teacher[i][t]))
    whole = [cut(lp[u] - mu[u]) for u in counted]
    return Token(lp[t], mu[t], prox[t], a, whole, [cut(prox[u] - mu[u]) for u in counted])


def slow_divergence(o: Objective, lp: float, ref: float) -> float:
    q = ref - lp
    if o.kl_kind == "k1":
        return max(-20.0, min(20.0, -q))
    if o.kl_kind == "k2":
        return q * q / 2 if abs(q) <= 20 else 20 * abs(q) - 200
    edge = 2.6108686381498756  # k3 is 10 there
    return math.exp(q) - q - 1 if q <= edge else 10 + (math.exp(edge) - 1) * (q - edge)


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
    while o.second_moment and away and sum(away.values()) / len(away) > o.second_moment:
        worst = max(away, key=lambda place: away[place])
        dropped.add(worst)
        del away[worst]
    return dropped


def made(name: str, **options: Any) -> Objective:
    return OBJECTIVES[name].having(options, name)


VARIANTS = [
    *(replace(o, kl=0.0, distill=0.0) for o in OBJECTIVES.values()),  # other policies have tests of their own
    made("grpo", dual_clip=1.5),
    made("grpo", dual=0),
    made("grpo", anchor="prox", high=0.3),
    made("grpo", aggregation="constant", constant_length=77, advantage_std="none"),
    made("dppo", aggregation="sequence_mean", weight_cap=1.0, tau=0.1),
    made("async", spread=0.1),
    made("tis_sequence", weight_tokens=4),
    made("gspo", clip_low=0.2, clip_high=0.3),
    made("grpo", opsm=0.05),
    made("dapo", second_moment=0.02),
    made("decoupled", level="sequence", outside="cap", most=3.0),
    made("icepop_prox", level="sequence", dual=0),
]


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


@pytest.mark.parametrize(
    "objective",
    [
        *(replace(o, kl=0.3) for o in VARIANTS),
        made("grpo", kl=0.3, kl_kind="k2"),
        made("grpo", kl=0.3, kl_kind="k1", kl_in="reward"),
        made("async", kl=0.3, kl_in="reward"),
    ],
)
def test_with_a_reference_policy(objective: Objective) -> None:
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
    plain, objective = OBJECTIVES[name], made(name, entropy_bonus=0.3)
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


@pytest.mark.parametrize("objective", [*VARIANTS, made("async", kl=0.1)])
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
        known = TokenBatch(
            parts[r, c],
            behavior[r, c],
            advantages[r],
            r >= 0,
            sequence=r,
            reference=None if reference is None else reference[r, c],
            kept=kept[r, c],
        )
        tokens = token_losses(objective, known)
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
    if type(objective.term) in WEIGHT:
        assert logprobs.grad.abs().max() < 40


@pytest.mark.parametrize("objective", VARIANTS)
def test_an_empty_mask_gives_zero_with_a_gradient_of_zero(objective: Objective) -> None:
    logprobs = torch.full((2, 3), NAN, requires_grad=True)
    loss, metrics = batch_loss(
        objective, logprobs, torch.zeros(2, 3), torch.ones(2), torch.zeros(2, 3, dtype=torch.bool)
    )
    loss.backward()
    assert loss.item() == 0 and (logprobs.grad == 0).all() and metrics["tokens_trained"] == 0


def test_every_term_has_a_slow_version() -> None:
    assert {type(o.term) for o in OBJECTIVES.values()} <= SLOW.keys() | WEIGHT.keys()


@pytest.mark.parametrize("objective", VARIANTS)
def test_gradients_by_finite_differences(objective: Objective) -> None:
    logprobs, behavior, advantages, mask = batch(4, 0.05)
    prox = (logprobs + 0.1 * torch.randn(6, 9, generator=torch.Generator().manual_seed(8), dtype=torch.float64)).clamp(
        max=0
    )
    lists = [x.tolist() for x in (logprobs, behavior, advantages, mask)]
    case = Case(*lists, prox=prox.tolist())
    dropped = slow_second_moment(objective, *lists)
    shares = AGGREGATIONS[objective.aggregation](mask.sum(1).double(), objective.constant_length)

    leaf = logprobs.clone().requires_grad_()
    batch_loss(objective, leaf, behavior, advantages, mask, prox_logprobs_NT=prox)[0].backward()
    step = 1e-6
    for r, c in mask.nonzero()[::3].tolist():
        if type(objective.term) in SLOW:
            up, down = logprobs.clone(), logprobs.clone()
            up[r, c] += step
            down[r, c] -= step
            values = [slow(objective, x.tolist(), *lists[1:], prox=case.prox) for x in (up, down)]
            wanted = (values[0] - values[1]) / (2 * step)
        else:  # at a weight that stays as it is
            token = slow_token(objective, case, r, c, mask[r].nonzero()[:, 0].tolist())
            stale = objective.opsm and token.a < 0 and -sum(token.whole) / len(token.whole) > objective.opsm
            weight = 0.0 if (r, c) in dropped or stale else WEIGHT[type(objective.term)](objective.term, token)
            pull = 2 * getattr(objective.term, "tau", 0.0) * token.log_w
            wanted = shares[r].item() * (pull - weight * token.a)
        assert leaf.grad[r, c].item() == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize("objective", [o for o in VARIANTS if o.uses_prox])
@pytest.mark.parametrize("spread", [0.0, 0.3, 20.0])
def test_three_policies_against_the_slow_version(objective: Objective, spread: float) -> None:
    for seed in range(3):
        logprobs, behavior, advantages, mask = batch(seed, spread)
        noise = torch.randn(6, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        prox = (logprobs + spread * noise).clamp(max=0)
        prox[~mask] = NAN
        prox[tuple(mask.nonzero()[seed].tolist())] = -INF
        loss, metrics = batch_loss(objective, logprobs, behavior, advantages, mask, prox_logprobs_NT=prox)
        lists = (x.tolist() for x in (logprobs, behavior, advantages, mask))
        assert loss.item() == pytest.approx(slow(objective, *lists, prox=prox.tolist()), rel=1e-9, abs=1e-12)
        assert metrics["tokens_invalid"] == 1


def verl_tis(lp: float, prox: float, mu: float, a: float) -> float:
    """verl: PPO of the new policy against the recomputed old one (clips .2 .2, c 3), times the truncated old / rollout ratio."""
    ratio = math.exp(lp - prox)
    pg = max(-a * ratio, -a * min(max(ratio, 0.8), 1.2))
    return (min(pg, -a * 3.0) if a < 0 else pg) * min(math.exp(prox - mu), 2.0)


def areal_decoupled(lp: float, prox: float, mu: float, a: float) -> float:
    """AReaL: the behaviour weight masked where it is above its cap of 5, times the PPO loss against the proximal policy."""
    ratio, behave = math.exp(lp - prox), math.exp(prox - mu)
    pg = max(-a * ratio, -a * min(max(ratio, 0.8), 1.2))
    return pg * behave if behave <= 5.0 else 0.0


def trl_icepop(lp: float, prox: float, mu: float, a: float) -> float:
    """TRL: the token's weight old / sampler where it lies within [.5, 5], else 0, times the clipped loss."""
    weight = math.exp(prox - mu)
    ratio = math.exp(lp - prox)
    pg = -min(a * ratio, a * min(max(ratio, 0.8), 1.2))
    return pg * weight if 0.5 <= weight <= 5.0 else 0.0


@pytest.mark.parametrize(
    ("objective", "golden"),
    [
        (made("tis_prox"), verl_tis),
        (made("decoupled", dual=0), areal_decoupled),
        (made("icepop_prox", dual=0), trl_icepop),
    ],
)
def test_three_policies_in_the_forms_of_others(objective: Objective, golden: Callable[..., float]) -> None:
    """Values and gradients, at ratios on both sides of every bound."""
    gaps = [-2.0, -0.7, -0.1, 0.0, 0.1, 0.6, 1.2, 1.8]
    for a in (1.0, -0.5):
        rows = [(-2.0 + x, -2.0, -2.0 - y) for x in gaps for y in gaps]
        lp, prox, mu = (torch.tensor([column], dtype=torch.float64) for column in zip(*rows, strict=True))
        leaf = lp.clone().requires_grad_()
        loss, _ = batch_loss(
            objective, leaf, mu, torch.tensor([a]).double(), torch.ones_like(lp).bool(), prox_logprobs_NT=prox
        )
        loss.backward()
        n, h = len(rows), 1e-6
        assert loss.item() == pytest.approx(sum(golden(*row, a) for row in rows) / n, rel=1e-12)
        for place, (x, p, m) in enumerate(rows):
            slope = (golden(x + h, p, m, a) - golden(x - h, p, m, a)) / (2 * h) / n
            assert leaf.grad[0, place].item() == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("name", ["decoupled", "tis_prox", "icepop_prox"])
def test_without_a_proximal_policy_the_gradient_is_that_of_the_weight_alone(name: str) -> None:
    """A batch that is one step: pi / prox is 1."""
    pair = {"decoupled": made("icepop", low=1.0, high=4.0), "tis_prox": made("tis"), "icepop_prox": made("icepop")}
    logprobs, behavior, advantages, mask = batch(2, 0.8)
    grads = []
    for objective in (replace(pair[name], aggregation=OBJECTIVES[name].aggregation), OBJECTIVES[name]):
        leaf = logprobs.clone().requires_grad_()
        batch_loss(objective, leaf, behavior, advantages, mask)[0].backward()
        grads.append(leaf.grad)
    assert torch.allclose(*grads, atol=1e-14)


@pytest.mark.parametrize("objective", [made("distill"), made("grpo", distill=0.7), made("topr", distill=0.2)])
def test_distillation_against_the_slow_version(objective: Objective) -> None:
    logprobs, behavior, advantages, mask = batch(3, 0.3)
    teacher = (logprobs + torch.randn(6, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 8).clamp(
        max=0
    )
    teacher[tuple(mask.nonzero()[0].tolist())] = NAN
    loss, metrics = batch_loss(objective, logprobs, behavior, advantages, mask, teacher_logprobs_NT=teacher)
    lists = (x.tolist() for x in (logprobs, behavior, advantages, mask))
    assert loss.item() == pytest.approx(slow(objective, *lists, teacher=teacher.tolist()), rel=1e-9)
    assert metrics["tokens_invalid"] == 1 and "kl_teacher" in metrics
    with pytest.raises(ValueError, match="needs the log-probabilities of a teacher"):
        batch_loss(objective, logprobs, behavior, advantages, mask)


def test_distillation_descends_the_reverse_divergence() -> None:
    """On samples of the policy itself the mean gradient is that of KL(pi || teacher), which is known exactly for a table."""
    g = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(5, generator=g, dtype=torch.float64) for _ in range(2))
    leaf = logits.clone().requires_grad_()
    log_pi, log_teacher = torch.log_softmax(leaf, -1), torch.log_softmax(teacher, -1)
    (log_pi.exp() * (log_pi - log_teacher)).sum().backward()
    exact, leaf.grad = leaf.grad, None
    drawn = log_pi.detach().exp().multinomial(400_000, replacement=True, generator=g)
    lp = torch.log_softmax(leaf, -1)[drawn][:, None]
    ones = torch.ones_like(lp, dtype=torch.bool)
    loss, _ = batch_loss(
        OBJECTIVES["distill"],
        lp,
        lp.detach(),
        torch.zeros(len(drawn)),
        ones,
        None,
        None,
        None,
        log_teacher[drawn][:, None],
    )
    loss.backward()
    assert torch.allclose(leaf.grad, exact, atol=0.01) and exact.abs().max() > 0.1


@pytest.mark.long
@pytest.mark.parametrize("kl", [0.001, 0.005, 0.02])
@pytest.mark.parametrize("length", [64, 256, 1024, 4096, 8192])
def test_the_default_weighs_long_answers_as_much_as_short_ones(kl: float, length: int) -> None:
    """``log w`` of a token ~ N(-kl, 2 kl), so that an answer's is N(-s2 / 2, s2) with s2 = 2 kl T: the mean weight is 1 within 5%.

    The answers' sums are drawn in strata, one of each, and the tokens of an answer given their sum: few answers suffice.
    """
    rows, g = 128, torch.Generator().manual_seed(1)
    noise = torch.randn(rows, length, generator=g)
    quantiles = torch.special.ndtri((torch.arange(rows) + torch.rand(rows, generator=g, dtype=torch.float64)) / rows)
    noise += (quantiles.float() / math.sqrt(length) - noise.mean(1))[:, None]
    log_w = noise * math.sqrt(2 * kl) - kl
    behavior = torch.full_like(log_w, -3.0)
    with torch.no_grad():
        _, metrics = async_objective(behavior + log_w, behavior, torch.ones(rows), torch.ones_like(log_w))
    assert metrics["importance_ratio_capped_mean"] == pytest.approx(1.0, abs=0.05)


def test_the_default_is_the_plain_weight_of_the_sequence_while_that_spreads_little() -> None:
    logprobs, behavior, advantages, mask = batch(5, 0.05)
    plain, tempered = (batch_loss(made(n), logprobs, behavior, advantages, mask)[0] for n in ("tis_sequence", "async"))
    assert plain.item() == pytest.approx(tempered.item(), rel=1e-6)


@pytest.mark.parametrize("length", [8, 1024])
def test_a_token_that_the_policy_has_left_is_not_pushed_further_by_the_default(length: int) -> None:
    """However long the answer, the weight of the token itself falls with its own ratio; the others' is tempered, and stays."""
    logprobs = torch.full((1, length), -1.0)
    logprobs[0, 3] = -11.0
    logprobs.requires_grad_()
    async_objective(logprobs, torch.full((1, length), -1.0), torch.tensor([-1.0]), torch.ones(1, length))[0].backward()
    slope = logprobs.grad[0] * length
    assert slope[3] < 1e-4 and 0.1 < slope[4] < 1


def test_no_negative_token_takes_over_a_step() -> None:
    """One token that was recorded as nearly impossible, among thirty-two: the gradient of every preset but r1's stays near the others'."""
    for name, objective in OBJECTIVES.items():
        plain = replace(objective, kl=0.0, distill=0.0)
        for recorded in (-15.0, -25.0, -40.0):
            logprobs = torch.full((4, 8), -1.0, requires_grad=True)
            behavior = torch.full((4, 8), -1.0)
            behavior[1, 3] = recorded
            batch_loss(plain, logprobs, behavior, torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.ones(4, 8))[0].backward()
            biggest = logprobs.grad.abs().max().item()
            assert biggest < 0.4 or name in ("r1", "gspo"), (name, recorded, biggest)


@pytest.mark.parametrize("divergence", [k2, k3])
def test_a_divergence_never_loses_its_gradient(divergence: Callable[..., torch.Tensor]) -> None:
    """It grows with the distance, is continuous, and pulls wherever the policies differ."""
    q = torch.linspace(-60, 60, 24_001, dtype=torch.float64)
    logprobs = torch.zeros_like(q, requires_grad=True)
    value = divergence(logprobs, q)
    value.sum().backward()
    slope = -logprobs.grad  # by q
    assert (value.detach().diff().abs() < 0.12).all() and (value >= 0).all()
    assert (slope[q > 0.02] > 0).all() and (slope[q < -0.02] < 0).all() and slope.abs().max() < 21
    assert (slope.diff() >= -1e-9).all(), "the further away, the stronger"


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
    masked = made("dppo", trust=0.3)
    assert batch_loss(masked, logprobs, behavior, up, every)[1]["clip_fraction_high"] == pytest.approx(1 / 3)
    _, metrics = async_objective(logprobs, behavior, up, every, weight_cap=1.5)
    assert metrics["capped_fraction"] == 1.0 and metrics["importance_ratio_capped_mean"] > 1.5, "all of one sequence"
    assert async_objective(logprobs, behavior, up, every, weight_cap=1.5, spread=0.1)[1][
        "capped_fraction"
    ] == pytest.approx(1 / 3)
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
    tokens = token_losses(OBJECTIVES["grpo"], TokenBatch(logprobs, behavior, advantages[:, None].expand_as(mask), mask))
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


def test_a_far_reference_pulls_with_a_bounded_force() -> None:
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
    far = 10 + 12.6108686 * (29.9 - 2.6108686)
    assert loss.item() == pytest.approx(far / 2) and metrics["kl_reference"] == pytest.approx(far / 2)
    assert logprobs.grad[0].tolist() == pytest.approx([-12.6108686 / 2, 0.0])


def test_shapes_that_do_not_agree_are_named() -> None:
    with pytest.raises(ValueError, match=r"advantages \(3,\)"):
        grpo(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3), torch.ones(2, 3))


def test_the_run_file_replaces_single_values() -> None:
    given = {"name": "dapo", "clip_high": 0.4, "aggregation": "constant", "constant_length": 9}
    objective = objective_of(ObjectiveTable.model_validate(given))
    assert objective == replace(OBJECTIVES["dapo"], term=PpoClip(high=0.4), aggregation="constant", constant_length=9)
    assert objective_of(ObjectiveTable(name="dppo", tau=0.0)).regularises is False
    assert objective_of(ObjectiveTable()) == OBJECTIVES["async"]


def test_published_settings_stand_behind_the_names() -> None:
    r1 = objective_of(ObjectiveTable(name="r1"))
    assert r1 == Objective(PpoClip(10.0, 10.0, 0.0), "population", "sequence_mean", kl=1e-3, ref_refresh=400)
    assert objective_of(ObjectiveTable(name="r1", kl=0.0)).kl == 0
    assert objective_of(ObjectiveTable(name="drgrpo")).advantage_std == "none"
    assert objective_of(ObjectiveTable(name="rloo")).advantage_baseline == "leave_one_out"


MISTAKES = [
    ({"name": "grpo", "trust": 0.1}, r"objective 'grpo' does not read 'trust'"),
    ({"name": "topr", "clip_high": 0.3}, r"objective 'topr' does not read 'clip_high'"),
    ({"name": "tis", "weight_tokens": 64}, r"objective 'tis' does not read 'weight_tokens'"),
    ({"name": "grpo", "hihg": 0.3}, r"did you mean 'high'\?"),
    ({"weight_tokens": 64}, r"objective 'async' does not read weight_tokens: use spread"),
    ({"name": "decoupled", "clip_high": 4}, r"does not read clip_high: use high for the clip of pi / prox, most"),
    ({"name": "grpo", "high": -0.1}, r"high = -0\.1: must be a number above 0"),
    ({"name": "grpo", "high": "wide"}, r"high = 'wide': must be a number"),
    ({"name": "grpo", "kl": 0.1, "kl_kind": "k1"}, r"pulls nowhere.*kl_in = 'reward'"),
    ({"name": "grpo", "ref_refresh": 5}, r"reads ref_refresh only where kl is above 0"),
    ({"name": "grpo", "constant_length": 5}, r"reads constant_length only with aggregation = 'constant'"),
    ({"name": "grppo"}, r"did you mean 'grpo'\?"),
    ({"name": "grpo", "use": "mine.py:Mine"}, r"are two objectives"),
    ({"name": "grpo", "advantage_std": "standard"}, r"advantage_std = 'standard': must be one of"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_an_option_that_would_never_be_read_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveTable.model_validate(given)


def test_the_published_settings_of_r1_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    table._warn_of_r1.cache_clear()
    for _ in range(3):
        objective_of(ObjectiveTable(name="r1"))
    assert len(caplog.records) == 1 and "dual" in caplog.text
    objective_of(ObjectiveTable(name="r1", dual=3))
    assert len(caplog.records) == 1


def test_a_sequence_is_on_or_off_as_a_whole() -> None:
    behavior = torch.full((2, 4), -1.0)
    logprobs = (behavior + torch.tensor([[0.1], [0.5]])).requires_grad_()
    loss, metrics = batch_loss(
        OBJECTIVES["gspo"], logprobs, behavior, torch.tensor([1.0, -1.0]), torch.ones(2, 4, dtype=torch.bool)
    )
    loss.backward()
    assert (logprobs.grad[0] == 0).all() and (logprobs.grad[1] > 0).all() and metrics["clip_fraction_high"] == 0.5
    stale = (behavior - torch.tensor([[0.2], [0.01]])).requires_grad_()
    masked = made("grpo", opsm=0.1, clip_low=0.9)
    batch_loss(masked, stale, behavior, torch.tensor([-1.0, -1.0]), torch.ones(2, 4, dtype=torch.bool))[0].backward()
    assert (stale.grad[0] == 0).all() and (stale.grad[1] != 0).all()
