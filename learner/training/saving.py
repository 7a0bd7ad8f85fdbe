"""Keeps the state on the disk, beside training: one process writes whole files, a pool's ranks a part each (``learner.parallel.saving``)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from learner.model import lora
from learner.model.load import save_tokenizer
from learner.model.policy import PolicyWeights
from learner.training.checkpoint import Checkpoints, flatten
from learner.training.tensorfiles import TENSORS, disk_error, write_tensors

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

    def check(self) -> None:
        """The same, unless something is still under way."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A state as it was: the model's tensors under the names that its own file has, and the rest of the state's."""

    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]
    tree: Any


class Beside:
    """One write at a time, on a thread beside the trainer's. What it fails with is raised where the next one begins, or is waited for."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, write: Callable[[], None]) -> None:
        """Wait for the write before this one, raise what it failed with, and begin."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait for what is under way. Raises what it failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    @property
    def busy(self) -> bool:
        """Whether a write is under way."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """The same, unless something is still under way."""
        if not self.busy:
            self.wait()

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:  # raised in the trainer's thread, by what it does next
            self._error = error


class WholeSaver:
    """Of one process: a step waits for the copy into the CPU's memory, and a thread writes it. The room for the copy is kept for the next."""

    def __init__(self) -> None:
        self._room: dict[str, Tensor] = {}
        self._beside = Beside()

    def save(
        self, state: LearnerState, checkpoints: Checkpoints, keep: int, name: str, extra: Mapping[str, Any]
    ) -> Path:
        self.wait()
        progress, model, source = state.progress, state.model, state.model_path
        kept = self._keep(state, extra)
        final, beside = checkpoints.begin(progress, name)
        if (adapters := state.adapter_files()) is not None:
            state.adapters.write(model, source, adapters, beside / "adapter")

        def write() -> None:
            write_model(model, source, beside, kept.weights)
            write_tensors(kept.tensors, beside / TENSORS)
            checkpoints.finish(progress, kept.tree, final, beside, keep)

        self._beside.begin(write)
        if name:
            self.wait()
        return final

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._beside.busy

    def wait(self) -> None:
        self._beside.wait()

    def check(self) -> None:
        self._beside.check()

    def write(self, state: LearnerState, beside: Path, extra: Mapping[str, Any]) -> None:
        raise NotImplementedError("one process has no others to follow it")

    @torch.no_grad()
    def _keep(self, state: LearnerState, extra: Mapping[str, Any]) -> Kept:
        """Copy the state; a tensor of several names under the first of them, as the model's own file has it."""
        tensors: dict[str, Tensor] = {}
        tree = flatten(tree_of(state, extra), tensors)
        room: dict[str, Tensor] = {}

        def copied(name: str, tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            place = self._room.pop(name, None)
            if place is None or (place.shape, place.dtype) != (tensor.shape, tensor.dtype):
                place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            room[name] = place.copy_(tensor)
            return place

        kept = Kept(
            {name: copied(f"model/{name}", tensor) for name, tensor in PolicyWeights(state.model, tied=False).items()},
            {path: copied(f"state/{path}", tensor) for path, tensor in tensors.items()},
            tree,
        )
        self._room = room
        return kept


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


def write_model(model: Any, tokenizer_source: str, directory: Path, weights: Mapping[str, Tensor]) -> None:
    """Write ``model`` as ``learner.model.load.save_model`` does, with ``weights`` for those that it has now. Raises OSError."""
    try:
        model.save_pretrained(directory, state_dict=dict(weights))
    except SafetensorError as error:
        raise disk_error(error, directory) or error from error
    save_tokenizer(tokenizer_source, directory)
