"""One optimizer step: repeatable bit for bit, and the same whatever the packing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from broker.messages import ChatMessage, Sampling, Segment, Trajectory, VersionSpan
from learner.config import LearnerTable
from learner.groups import Judged
from learner.model import load_model
from learner.muon import orthogonalise
from learner.optimizer import build_optimizer, learning_rate
from learner.trainer import TrainState, state_sha256, train_step


def groups_of(count: int, seed: int = 0) -> list[list[Judged]]:
    rng = np.random.default_rng(seed)
    out = []
    for g in range(count):
        group = []
        for i in range(4):
            n = int(rng.integers(8, 40))
            tokens = rng.integers(0, 300, n).astype(np.int32)
            logprobs = np.concatenate((np.zeros(4), -rng.random(n - 4) * 6)).astype(np.float32)
            spans = (Segment("prompt", 0, 4, False), Segment("assistant", 4, n, True))
            sample = Trajectory(
                f"d-{g}@0", i, 4, (ChatMessage("user", "?"),), None, "", {}, {"r": 1.0}, "train", "", tokens, logprobs, spans,
                (VersionSpan(0, 4),), "stop", Sampling(),
            )  # fmt: skip
            group.append(Judged(sample, float(rng.random())))
        out.append(group)
    return out


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


@pytest.mark.parametrize("objective", ["async", "grpo", "dapo"])
def test_steps_repeat_bit_for_bit(model: Any, objective: str) -> None:
    config = table(objective=objective)
    first, metrics, _ = stepped(model, groups_of(3), config)
    second, _, _ = stepped(model, groups_of(3), config)
    assert first == second != state_sha256(model)
    assert metrics["tokens_trained"] == sum(s.trajectory.response_tokens for g in groups_of(3) for s in g)
    assert metrics["staleness_mean"] == 1.0, "the second step is taken by version 1, the samples are of version 0"
    assert 0 < metrics["ess_ratio"] <= 1 and metrics["grad_norm"] > 0


@pytest.mark.parametrize("objective", ["async", "grpo", "dapo"])
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


def test_a_reference_policy_is_kept_and_refreshed(model: Any) -> None:
    config = table(objective={"name": "grpo", "kl": 0.1, "ref_refresh": 2})
    clone = copy.deepcopy(model)
    state = TrainState.begin(clone, build_optimizer(clone, config.optimizer), 0, config)
    assert train_step(state, groups_of(2), config, 10).metrics["kl_reference"] == pytest.approx(0, abs=1e-6)
    assert train_step(state, groups_of(2), config, 10).metrics["kl_reference"] > 0
    assert state_sha256(state.reference) == state_sha256(clone)


def test_a_gradient_that_is_not_finite_makes_no_step(model: Any) -> None:
    clone = copy.deepcopy(model)
    optimizers = build_optimizer(clone, table().optimizer)
    for parameter in clone.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    before = state_sha256(clone)
    assert not np.isfinite(optimizers.step()) and state_sha256(clone) == before


def test_schedules() -> None:
    of = lambda step, **t: learning_rate(table(optimizer={"lr": 1.0, **t}).optimizer, step, 10)  # noqa: E731
    assert [of(s) for s in (0, 9)] == [1.0, 1.0]
    assert [round(of(s, schedule="linear", final_lr=0.1), 3) for s in (0, 5, 10, 99)] == [1.0, 0.5, 0.1, 0.1]
    assert of(5, schedule="cosine", final_lr=0.0) == pytest.approx(0.5)
    assert [of(s, warmup_steps=4) for s in (0, 3, 8)] == [0.25, 1.0, 1.0]


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 8, 8)])
def test_muon_moves_singular_values_to_about_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.4 and values.max() < 1.3
