"""The learner on a GPU: a step is that of the CPU, and between its turns it holds no device memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gputools import DEVICE, ON_ONE_GPU, allocated
from samples import groups_of

from learner.model.load import load_model
from learner.tables import LearnerTable
from learner.training.optimizer import build_optimizer
from learner.training.residence import Residence
from learner.training.trainer import TrainState, train_step

pytestmark = ON_ONE_GPU


def state_of(model: Path, device: str, table: LearnerTable) -> TrainState:
    policy = load_model(str(model), device=device)
    return TrainState.begin(policy, build_optimizer(policy, table.optimizer), 0, table)


def table(**changes: Any) -> LearnerTable:
    # with a tiny eps Adam turns rounding into steps
    return LearnerTable.model_validate({"pack_tokens": 256, "optimizer": {"lr": 1e-3, "eps": 1.0}, **changes})


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.model.state_dict().items()}


@pytest.mark.parametrize("objective", ["async", "r1", "gspo"])
def test_a_step_is_that_of_the_cpu(tiny_model: Path, objective: str) -> None:
    config = table(objective=objective)
    states = {device: state_of(tiny_model, device, config) for device in ("cpu", DEVICE)}
    reports = {
        device: [train_step(state, groups_of(4), config, 10) for _ in range(2)] for device, state in states.items()
    }
    for cpu, gpu in zip(reports["cpu"], reports[DEVICE], strict=True):
        assert gpu.metrics["loss"] == pytest.approx(cpu.metrics["loss"], abs=1e-4)
        assert gpu.metrics["grad_norm"] == pytest.approx(cpu.metrics["grad_norm"], rel=1e-3)
    held = weights(states[DEVICE])
    for name, tensor in weights(states["cpu"]).items():
        torch.testing.assert_close(held[name], tensor, atol=1e-4, rtol=1e-4)


def test_between_turns_the_device_is_free_and_training_goes_on_as_if_it_had_stayed(tiny_model: Path) -> None:
    config = table(objective="r1")
    stays = state_of(tiny_model, DEVICE, config)
    for _ in range(3):
        train_step(stays, groups_of(3), config, 10)
    expected = weights(stays)
    del stays
    before = allocated()
    state = state_of(tiny_model, DEVICE, config)
    residence = Residence(state.model, state.optimizers, state.reference, DEVICE)
    for _ in range(3):
        train_step(state, groups_of(3), config, 10)
        full = allocated() - before
        residence.to_host()
        assert allocated() - before < 0.1 * full
        assert not any(p.is_cuda for p in state.model.parameters())
        residence.to_device()
        assert allocated() - before > 0.9 * full
    for name, tensor in weights(state).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)
