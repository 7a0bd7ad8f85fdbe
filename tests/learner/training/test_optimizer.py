"""Optimizers, Muon, and the learning rate."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.model.load import load_model
from learner.tables import OptimizerTable
from learner.training import optimizer as made
from learner.training.muon import orthogonalise
from learner.training.optimizer import build_optimizer, learning_rate
from learner.training.trainer import state_sha256


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return load_model(str(tiny_model))


def filled(model: Any, value: float) -> Any:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)
    return model


def test_gradients_are_clipped_by_their_norm_over_all_parameters(model: Any) -> None:
    count = sum(p.numel() for p in model.parameters())
    optimizers = build_optimizer(filled(model, 0.5), OptimizerTable(lr=1e-3, clip_norm=1.0))
    assert optimizers.step() == pytest.approx(0.5 * math.sqrt(count), rel=1e-4)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("muon", [0.0, 5.0])
def test_a_gradient_that_is_not_finite_makes_no_step(model: Any, value: float, muon: float) -> None:
    optimizers = build_optimizer(filled(model, value), OptimizerTable(lr=1e-3, muon=muon))
    before = state_sha256(model)
    assert not math.isfinite(optimizers.step()) and state_sha256(model) == before
    filled(model, 0.1)
    assert math.isfinite(optimizers.step()) and state_sha256(model) != before


@pytest.mark.parametrize(("muon", "fused_from"), [(0.0, made.FUSED), (5.0, made.FUSED), (0.0, 0)])
def test_state_goes_on_bit_for_bit(model: Any, muon: float, fused_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "FUSED", fused_from)
    table = OptimizerTable(lr=1e-3, muon=muon)

    def steps(start: Any, count: int, state: Any = None) -> tuple[Any, Any]:
        optimizers = build_optimizer(start, table)
        if state is not None:
            optimizers.load_state_dict(state)
        for i in range(count):
            g = torch.Generator().manual_seed(i if state is None else i + 2)
            for parameter in start.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=g)
            optimizers.set_lr(1e-3)
            optimizers.step()
        return start, optimizers.state_dict()

    whole, _ = steps(copy.deepcopy(model), 4)
    half, state = steps(copy.deepcopy(model), 2)
    rest, _ = steps(half, 2, state)
    assert state_sha256(rest) == state_sha256(whole)


def test_a_large_model_is_stepped_in_one_pass_and_what_was_begun_otherwise_goes_on_as_it_was(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = OptimizerTable(lr=1e-3)

    def stepped(start: Any, state: Any) -> tuple[str, list[dict[str, Any]]]:
        optimizers = build_optimizer(start, table)
        if state is not None:
            optimizers.load_state_dict(state)
        for parameter in start.parameters():
            parameter.grad = (
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) + parameter.detach()
            )
        optimizers.step()
        return state_sha256(start), optimizers.state_dict()

    first = copy.deepcopy(model)
    _, begun = stepped(first, None)
    wanted, _ = stepped(copy.deepcopy(first), copy.deepcopy(begun))
    monkeypatch.setattr(made, "FUSED", 0)
    again, state = stepped(copy.deepcopy(first), copy.deepcopy(begun))
    assert again == wanted and not state[0]["param_groups"][0]["fused"]
    one_pass = copy.deepcopy(model)
    _, state = stepped(one_pass, None)
    assert state[0]["param_groups"][0]["fused"]
    for mine, theirs in zip(first.parameters(), one_pass.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-7)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(model: Any) -> None:
    optimizers = build_optimizer(model, OptimizerTable(lr=1e-3, muon=7.0))
    optimizers.set_lr(0.5)
    adamw, muon = (part["param_groups"][0] for part in optimizers.state_dict())
    matrices = sum(p.ndim == 2 and "embed" not in name for name, p in model.named_parameters())
    assert len(muon["params"]) == matrices and muon["lr"] == 3.5
    assert len(adamw["params"]) == len(list(model.parameters())) - matrices and adamw["lr"] == 0.5


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 8, 8)])
def test_muon_moves_singular_values_to_about_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.4 and values.max() < 1.3


def test_schedules() -> None:
    def rate(step: int, **changes: Any) -> float:
        return learning_rate(OptimizerTable(lr=1.0, **changes), step, 10)

    assert [rate(s) for s in (0, 9)] == [1.0, 1.0]
    assert [round(rate(s, schedule="linear", final_lr=0.1), 3) for s in (0, 5, 10, 99)] == [1.0, 0.5, 0.1, 0.1]
    assert rate(5, schedule="cosine", final_lr=0.0) == pytest.approx(0.5)
    assert [rate(s, warmup_steps=4) for s in (0, 3, 8)] == [0.25, 1.0, 1.0]
