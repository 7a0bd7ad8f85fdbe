"""Keeps the state on the disk: one process writes whole files, a pool's ranks a part each (``learner.parallel.saving``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from learner.model import lora
from learner.model.load import save_model
from learner.training.checkpoint import Checkpoints

if TYPE_CHECKING:
    from learner.training.state import LearnerState


class Saver(Protocol):
    """How a placement writes checkpoints."""

    def save(
        self, state: LearnerState, checkpoints: Checkpoints, keep: int, name: str, extra: Mapping[str, Any]
    ) -> Path:
        """Begin a checkpoint, after the one before has ended; one with a ``name`` is on the disk on return. Raises what the one before
        failed with."""

    def write(self, state: LearnerState, beside: Path, extra: Mapping[str, Any]) -> None:
        """Write this rank's part into ``beside``."""

    def wait(self) -> None:
        """Wait for what is under way. Raises CheckpointError or OSError if it could not be written."""


class WholeSaver:
    """Of one process: everything is written before training goes on."""

    def save(
        self, state: LearnerState, checkpoints: Checkpoints, keep: int, name: str, extra: Mapping[str, Any]
    ) -> Path:
        return checkpoints.save(
            state.progress, tree_of(state, extra), lambda directory: _write_model(state, directory), keep, name
        )

    def write(self, state: LearnerState, beside: Path, extra: Mapping[str, Any]) -> None:
        raise NotImplementedError("one process has no others to follow it")

    def wait(self) -> None:
        pass


def tree_of(state: LearnerState, extra: Mapping[str, Any]) -> dict[str, Any]:
    """All of ``state`` but the weights, as a tree of tensors and JSON."""
    train = state.train
    return {
        "rng": torch.get_rng_state(),
        "extra": dict(extra),
        "optimizer": None if train is None else train.optimizers.state_dict(),
        "reference": None if train is None or train.reference is None else train.reference.state_dict(),
        "lora": lora.state(state.model),
    }


def _write_model(state: LearnerState, directory: Path) -> None:
    save_model(state.model, state.model_path, directory)
    if state.adapter_files() is not None:
        state.adapters.write(state.model, state.model_path, state.adapter_files() or "", directory / "adapter")
