"""One optimizer step: repeatable bit for bit, and the same whatever the packing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learnertools import executor_of, take
from samples import groups_of

from broker.errors import RunFileError
from broker.messages import Sampling, VersionSpan
from broker.runfile import RunFile
from broker.verdicts import ValueSpan
from learner.config import LearnerConfig
from learner.losses.advantages import batch_advantages
from learner.losses.objectives import OBJECTIVES
from learner.losses.table import objective_of
from learner.model.load import load_model
from learner.planning.groups import Judged
from learner.tables import LearnerTable
from learner.training.optimizer import build_optimizer
from learner.training.prepared import prepare
from learner.training.step import Step
from learner.training.trainer import TrainState, state_sha256, train_step


def table(**changes: Any) -> LearnerTable:
    return LearnerTable.model_validate({"pack_tokens": 128, "optimizer": {"lr": 1e-3}, **changes})


def stepped(
    model: torch.nn.Module, groups: list[list[Judged]], config: LearnerTable, steps: int = 2
) -> tuple[str, dict[str, float], torch.nn.Module]:
    model = copy.deepcopy(model)
    state = TrainState.begin(model, build_optimizer(model, config.optimizer), 0, config)
    metrics: dict[str, float] = {}
    for _ in range(steps):
        metrics = train_step(state, groups, config, 10).metrics
    assert (state.step, state.stage_step) == (steps, steps)
    return state_sha256(model), metrics, model


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    torch.set_num_threads(1)
    return load_model(str(tiny_model))


@pytest.mark.long
@pytest.mark.parametrize("objective", ["async", "grpo", "dapo", "topr", "gspo", "tis_sequence", "m2po", "decoupled"])
def test_steps_repeat_bit_for_bit(model: Any, objective: str) -> None:
    config = table(objective=objective)
    first, metrics, _ = stepped(model, groups_of(3), config)
    second, _, _ = stepped(model, groups_of(3), config)
    assert first == second != state_sha256(model)
    assert metrics["tokens_trained"] == sum(s.trajectory.response_tokens for g in groups_of(3) for s in g)
    assert metrics["staleness_mean"] == 1.0, "the second step is taken by version 1, the samples are of version 0"
    assert 0 < metrics["ess_ratio"] <= 1 and metrics["grad_norm"] > 0


@pytest.mark.long
@pytest.mark.parametrize("objective", ["grpo", "m2po", "decoupled", "tis_prox"])
def test_several_minibatches_are_one_version_and_repeat_bit_for_bit(model: Any, objective: str) -> None:
    config = table(objective=objective, minibatches=3)
    first, metrics, _ = stepped(model, groups_of(6), config)
    second, again, _ = stepped(model, groups_of(6), config)
    once, _, _ = stepped(model, groups_of(6), table(objective=objective))
    assert first == second != once and strip(metrics) == strip(again)
    assert metrics["tokens_trained"] == sum(s.trajectory.response_tokens for g in groups_of(6) for s in g)
    assert metrics["staleness_mean"] == 1.0, "a batch is one version, however many updates it has"


@pytest.mark.parametrize("objective", ["grpo", "async"])
def test_a_minibatch_is_a_step_of_its_own_against_the_policy_that_sampled(model: Any, objective: str) -> None:
    """Without a batch-wide advantage or a proximal policy two minibatches are two steps of half the groups each."""
    groups = groups_of(4)
    _, _, split = stepped(model, groups, table(objective=objective, minibatches=2), 1)
    config = table(objective=objective)
    clone = copy.deepcopy(model)
    state = TrainState.begin(clone, build_optimizer(clone, config.optimizer), 0, config)
    for half in (groups[::2], groups[1::2]):
        state.stage_step = 0
        train_step(state, half, config, 10)
    assert state_sha256(split) == state_sha256(clone)


def test_the_proximal_policy_is_the_one_before_the_batch(model: Any) -> None:
    """The second of two minibatches by hand: the first one's weights, and log-probabilities of the policy before it."""
    groups = groups_of(2)
    config = table(objective="decoupled", minibatches=2, optimizer={"lr": 5e-3, "clip_norm": 1e9})
    objective = OBJECTIVES["decoupled"]
    clone = copy.deepcopy(model)
    state = TrainState.begin(clone, build_optimizer(clone, config.optimizer), 0, config)
    prepared = prepare(groups, objective, config)
    step = Step(state, prepared.share(), config)
    pieces = step.pieces()
    gradients = []
    for minibatch in step.minibatches(pieces):
        for piece, kept_M in step.rounds(minibatch):
            scores = step.score(piece)
            step.total(piece, step.token_losses(piece, kept_M, scores)).backward()
        gradients.append(clone.lm_head.weight.grad.clone())
        if len(gradients) == 2:
            break
        step.update(5e-3)
        moved = copy.deepcopy(clone)
    rewards = torch.tensor([s.reward for g in groups for s in g], dtype=torch.float64)
    advantages = batch_advantages(rewards, torch.arange(8) // 4, "batch")[4:]
    tokens = sum(s.trajectory.response_tokens for s in groups[1])
    before_it = copy.deepcopy(model)
    for plain in (moved, before_it):
        plain.set_attn_implementation("eager")
        plain.zero_grad()
    for sample, a in zip(groups[1], advantages.tolist(), strict=True):
        ids = torch.from_numpy(sample.trajectory.tokens.astype(np.int64))[None]
        now, before = (
            torch.log_softmax(m(ids, use_cache=False).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[3:, 0]
            for m in (moved, before_it)
        )
        mu, prox = torch.from_numpy(sample.trajectory.logprobs[4:]), before.detach()
        rho, r = (prox - mu).exp(), (now - prox).exp()
        clipped = torch.maximum(-a * r, -a * r.clamp(0.8, 1.2))
        clipped = clipped.clamp(max=-3 * a) if a < 0 else clipped
        ((rho * (rho <= 5)) * clipped).sum().div(tokens).backward()
    assert torch.allclose(gradients[1], moved.lm_head.weight.grad, atol=1e-6)
    assert not torch.allclose(gradients[0], gradients[1], atol=1e-4)


def test_answers_that_were_cut_off_keep_their_place_and_give_no_gradient(model: Any) -> None:
    groups = groups_of(2)
    cut = [[Judged(replace(s.trajectory, finish_reason="length"), s.reward) for s in g] for g in groups[1:]]
    masked, plain = table(objective="grpo", mask_truncated=True), table(objective="grpo")
    _, found, _ = stepped(model, [groups[0], *cut], masked, 1)
    _, alone, _ = stepped(model, [groups[0]], plain, 1)
    assert found["loss"] == pytest.approx(alone["loss"] / 2, rel=1e-5), "half of the denominator is the cut ones'"
    assert found["tokens_trained"] == sum(s.trajectory.response_tokens for s in groups[0])
    assert stepped(model, groups, masked, 1)[0] == stepped(model, groups, plain, 1)[0], "nobody else is touched"


def test_values_of_steps_move_the_tokens_before_their_end(model: Any) -> None:
    """Equal rewards, one sample with a good first and one with a bad first half: only these tokens have a gradient."""
    (group,) = groups_of(1, longest=30)
    judged = []
    for i, sample in enumerate(group):
        n = len(sample.trajectory.tokens)
        spans = (ValueSpan(4, 6, float(i % 2)),) if n > 6 else ()
        judged.append(Judged(replace(sample.trajectory, rewards={"r": 1.0}), 0.5, {"r": spans}))
    objective = OBJECTIVES["grpo"]
    prepared = prepare([judged], objective, table(objective="grpo"))
    (chunk,) = prepared.chunks
    assert chunk.value_T is not None
    gained = chunk.value_T[chunk.mask_T]
    positions = chunk.positions_T[chunk.mask_T] + 1  # of the token that is predicted
    assert (gained[positions >= 6] == 0).all() and (gained[positions < 6].abs() == pytest.approx(1.0, abs=1e-5))
    _, metrics, _ = stepped(model, [judged], table(objective="grpo"), 1)
    assert metrics["grad_norm"] > 0 and metrics["advantage_abs_max"] == 0


def test_distillation_moves_the_student_to_its_teacher(model: Any) -> None:
    """On the student's own samples: what the teacher finds likelier becomes likelier, what it finds less likely less so."""
    groups = groups_of(4)
    config = table(objective={"name": "distill"}, optimizer={"lr": 3e-3})
    student = {id(s): own_logprobs(model, s) for g in groups for s in g}
    taught = [
        [
            Judged(
                replace(s.trajectory, logprobs=np.concatenate((np.zeros(4), student[id(s)])).astype(np.float32)),
                0.0,
                teacher=(student[id(s)] + (1.0 if i % 2 else -1.0)).astype(np.float32),
            )
            for i, s in enumerate(g)
        ]
        for g in groups
    ]
    _, metrics, trained = stepped(model, taught, config, 4)
    assert metrics["kl_teacher"] != 0 and metrics["tokens_trained"] > 0
    moved = [[(own_logprobs(trained, s) - student[id(s)]).mean() for s in g] for g in groups]
    assert np.mean([[g[1], g[3]] for g in moved]) > 0 > np.mean([[g[0], g[2]] for g in moved])
    without = [[Judged(s.trajectory, s.reward) for s in g] for g in taught]
    assert stepped(model, without, config, 1)[1]["tokens_invalid"] > 0, (
        "a token without a teacher is left out, and counted"
    )


@torch.no_grad()
def own_logprobs(model: Any, sample: Judged) -> np.ndarray:
    ids = torch.from_numpy(sample.trajectory.tokens.astype(np.int64))[None]
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    logits = plain(ids, use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[3:, 0].numpy()


def strip(metrics: dict[str, float]) -> dict[str, float]:
    """Without what is of the machine."""
    return {name: value for name, value in metrics.items() if not name.endswith("_bytes")}


MINE = """
from __future__ import annotations
from dataclasses import dataclass
from learner.losses.term import Term, Tokens, above

@dataclass(frozen=True, slots=True)
class Mine:
    \"\"\"A clipped score: -A log pi where log w is within margin.\"\"\"
    margin: float = 0.5

    def __post_init__(self) -> None:
        above(0, margin=self.margin)

    def __call__(self, tokens: Tokens) -> Term:
        far = (tokens.logprobs - tokens.behavior).detach().abs() > self.margin
        weight = (~far).to(tokens.logprobs.dtype)
        return Term(-weight * tokens.advantages * tokens.logprobs, weight, {"clip_high": far})
"""


def test_an_objective_from_a_file_beside_the_run_file_trains_a_step(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    mine = {"use": "mine.py:Mine", "margin": 3.0, "aggregation": "sequence_mean", "entropy_bonus": 0.01}
    found = take(executor_of(tiny_model, tmp_path, {"objective": mine}), 2)[-1].metrics
    other = take(executor_of(tiny_model, tmp_path, {"objective": {**mine, "margin": 0.1}}), 2)[-1].metrics
    assert found["grad_norm"] > 0 and 0 < found["clip_fraction_high"] < other["clip_fraction_high"]

    def refused(objective: dict[str, Any], message: str) -> None:
        file = RunFile({"learner": {"objective": objective}, "stage": [STAGE]}, tmp_path, tmp_path / "run.toml")
        with pytest.raises(RunFileError, match=message):
            training = LearnerConfig(file).training(0)
            assert training is not None
            training.objective.check("[learner] objective")
            objective_of(training.objective)

    refused({"use": "mine.py:Mine", "margn": 1.0}, r"unknown option 'margn' of mine.py:Mine; did you mean 'margin'\?")
    refused({"use": "mine.py:Mind"}, r"mine.py has no 'Mind'; did you mean 'Mine'\?")
    refused({"use": "mine.py:Mine", "margin": -1.0}, r"margin = -1.0: must be a number above 0")
    refused({"use": "mine.py:Mine", "kl": -1.0}, r"kl = -1.0: must be a number of at least 0")


STAGE = {"kind": "rl", "name": "rl", "steps": 20}


@pytest.mark.long
@pytest.mark.parametrize("objective", ["async", "grpo", "dapo", "topr", "gspo", "tis_sequence", "m2po", "decoupled"])
def test_the_step_does_not_depend_on_packing_or_order(model: Any, objective: str) -> None:
    groups = groups_of(4, 1)
    sgd = {"lr": 1e-3, "eps": 1.0}  # with a tiny eps Adam turns rounding into steps
    _, one, a = stepped(model, groups, table(objective=objective, pack_tokens=60, optimizer=sgd), 1)
    _, two, b = stepped(
        model, [g[::-1] for g in groups[::-1]], table(objective=objective, pack_tokens=4096, optimizer=sgd), 1
    )
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-6) and one["grad_norm"] == pytest.approx(
        two["grad_norm"], rel=1e-4
    )
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_silent_groups_cost_nothing_and_keep_their_place_in_the_denominators(model: Any) -> None:
    groups = groups_of(2)
    silent = [Judged(s.trajectory, 1.0) for s in groups[1]]
    _, metrics, _ = stepped(model, [groups[0], silent], table(objective="grpo"), 1)
    assert metrics["tokens_trained"] == sum(s.trajectory.response_tokens for s in groups[0])
    _, alone, _ = stepped(model, [groups[0]], table(objective="grpo"), 1)
    assert metrics["loss"] == pytest.approx(alone["loss"] / 2, rel=1e-5)


@pytest.mark.parametrize("objective", ["grpo", "m2po"])
def test_a_step_whose_groups_are_all_silent_changes_nothing(model: Any, objective: str) -> None:
    silent = [[Judged(s.trajectory, 0.5) for s in group] for group in groups_of(2)]
    weights, metrics, _ = stepped(model, silent, table(objective=objective))
    assert metrics["grad_norm"] == 0 and metrics["tokens_trained"] == 0 and weights == state_sha256(model)


def test_an_entropy_bonus_raises_the_entropy(model: Any) -> None:
    """Of silent groups too, which have no other gradient; at a bonus of 0 they have none."""
    silent = [[Judged(s.trajectory, 0.5) for s in group] for group in groups_of(3)]
    config = table(objective={"name": "grpo", "entropy_bonus": 0.1})
    _, first, _ = stepped(model, silent, config, 1)
    _, later, _ = stepped(model, silent, config, 6)
    assert later["entropy"] > first["entropy"] and later["grad_norm"] > 0


def test_a_reference_policy_is_kept_and_refreshed(model: Any) -> None:
    config = table(objective={"name": "grpo", "kl": 0.1, "ref_refresh": 2})
    clone = copy.deepcopy(model)
    state = TrainState.begin(clone, build_optimizer(clone, config.optimizer), 0, config)
    assert train_step(state, groups_of(2), config, 10).metrics["kl_reference"] == pytest.approx(0, abs=1e-6)
    assert train_step(state, groups_of(2), config, 10).metrics["kl_reference"] > 0
    assert state_sha256(state.reference) == state_sha256(clone)


def test_a_divergence_asked_for_in_the_middle_of_a_run_starts_from_the_policy_of_that_step(model: Any) -> None:
    clone, plain = copy.deepcopy(model), table(objective="grpo")
    state = TrainState.begin(clone, build_optimizer(clone, plain.optimizer), 0, plain)
    assert "kl_reference" not in train_step(state, groups_of(2), plain, 10).metrics
    pulled = table(objective={"name": "grpo", "kl": 0.1})
    before = state_sha256(clone)
    assert train_step(state, groups_of(2), pulled, 10).metrics["kl_reference"] == pytest.approx(0, abs=1e-6)
    assert state_sha256(state.reference) == before != state_sha256(clone)
    assert train_step(state, groups_of(2), pulled, 10).metrics["kl_reference"] > 0


def test_weights_that_are_broken_make_no_step_and_are_told(model: Any) -> None:
    clone, config = copy.deepcopy(model), table(objective="grpo")
    with torch.no_grad():
        clone.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    before = state_sha256(clone)
    state = TrainState.begin(clone, build_optimizer(clone, config.optimizer), 0, config)
    groups = groups_of(2)
    metrics = train_step(state, groups, config, 10).metrics
    assert metrics["step_skipped"] == 1 and state_sha256(clone) == before and state.step == 1
    assert metrics["tokens_invalid"] == sum(s.trajectory.response_tokens for g in groups for s in g)
    assert metrics["loss"] == 0 and metrics["tokens_trained"] == 0


def test_each_sample_is_scored_at_the_temperature_it_was_sampled_at(model: Any) -> None:
    groups = groups_of(2)
    warm = [[Judged(replace(s.trajectory, sampling=Sampling(temperature=2.0)), s.reward) for s in g] for g in groups]
    # a model whose logits are halved is, at temperature 1, what the model is at temperature 2
    halved = copy.deepcopy(model)
    with torch.no_grad():
        halved.model.norm.weight.mul_(0.5)
    _, wanted, _ = stepped(halved, groups, table(objective="grpo"), 1)
    _, found, _ = stepped(model, warm, table(objective="grpo"), 1)
    assert found["entropy"] == pytest.approx(wanted["entropy"], rel=1e-5)
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
    assert found["entropy"] > stepped(model, groups, table(objective="grpo"), 1)[1]["entropy"]


def test_staleness_is_split_into_sampling_and_waiting(model: Any) -> None:
    clone, config = copy.deepcopy(model), table()
    state = TrainState.begin(clone, build_optimizer(clone, config.optimizer), 0, config)
    state.step = 7
    groups = groups_of(1)
    spans = [(VersionSpan(7, 4),), (VersionSpan(5, 4),), (VersionSpan(3, 4), VersionSpan(5, 6)), (VersionSpan(6, 4),)]
    samples = [Judged(replace(s.trajectory, versions=v), s.reward) for s, v in zip(groups[0], spans, strict=True)]
    metrics = train_step(state, [samples], config, 10).metrics
    assert metrics["staleness_max"] == 4 and metrics["versions_per_sample"] == 1.25
    assert metrics["staleness_sampling_mean"] == 2 / 4 and metrics["staleness_queue_mean"] == (0 + 2 + 2 + 1) / 4
    lags = np.concatenate([7 - s.trajectory.versions_per_token()[4:] for s in samples])
    assert metrics["staleness_mean"] == pytest.approx(lags.mean())
    assert metrics["mismatch"] > 0


def test_bfloat16_computes_near_float32_over_exact_weights(model: Any) -> None:
    groups = groups_of(3)
    _, exact, _ = stepped(model, groups, table(objective="grpo"), 1)
    _, mixed, trained = stepped(model, groups, table(objective="grpo", dtype="bfloat16"), 1)
    assert mixed["entropy"] == pytest.approx(exact["entropy"], rel=0.02)
    assert mixed["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.2)
    assert {p.dtype for p in trained.parameters()} == {torch.float32}


@pytest.mark.parametrize("changes", [{"advantage_baseline": "leave_one_out"}, {"advantage_std": "none"}])
def test_the_run_file_chooses_the_advantage(model: Any, changes: dict[str, str]) -> None:
    _, plain, _ = stepped(model, groups_of(2), table(objective="grpo"), 1)
    _, changed, _ = stepped(model, groups_of(2), table(objective={"name": "grpo", **changes}), 1)
    assert changed["advantage_abs_mean"] != plain["advantage_abs_mean"]
    if "advantage_baseline" in changes:
        assert changed["advantage_abs_mean"] == pytest.approx(plain["advantage_abs_mean"] * 4 / 3, rel=1e-5)


def test_the_gradient_is_that_of_the_objective_by_hand(model: Any) -> None:
    """One group, no packing, no custom backward: log_softmax, the formula, autograd."""
    (group,) = groups_of(1)
    hand = copy.deepcopy(model)
    hand.set_attn_implementation("eager")
    rewards = torch.tensor([s.reward for s in group], dtype=torch.float64)
    advantages = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-6)
    loss = torch.zeros(())
    for sample, advantage in zip(group, advantages.tolist(), strict=True):
        ids = torch.from_numpy(sample.trajectory.tokens.astype(np.int64))[None]
        logprobs = torch.log_softmax(hand(ids, use_cache=False).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[3:, 0]
        w = (logprobs - torch.from_numpy(sample.trajectory.logprobs[4:])).exp()
        clipped = torch.maximum(-advantage * w, -advantage * w.clamp(0.8, 1.2))
        loss = loss + (clipped.clamp(max=-3 * advantage) if advantage < 0 else clipped).mean() / 4
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in hand.parameters()]).norm().item()
    _, metrics, _ = stepped(model, [group], table(objective="grpo"), 1)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4) and metrics["grad_norm"] == pytest.approx(
        norm, rel=1e-4
    )
