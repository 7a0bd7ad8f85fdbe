"""Measures the memory that training takes, in bytes: what the forward pass holds for the backward pass, parameters, optimizer state.

Activations are counted in the same sense everywhere, as what is held between the two passes. On a GPU the allocator is asked
before and after the forward pass. The CPU's allocator cannot be asked, so there the tensors that autograd saves are counted, each
storage once and parameters left out; that costs a call of Python a saved tensor, so a step counts its first chunk only (it holds
the longest sequence). What comes and goes within a layer is in neither number: the device's peak is a metric of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from learner.training.optimizer import Optimizers
from learner.training.shards import is_sharded


class Held:
    """Bytes that are held for the backward pass, once the forward pass has ended. ``apart`` are the places of storages that do not count."""

    def __init__(self, apart: Iterable[int] = ()) -> None:
        self.bytes = 0
        self._apart = frozenset(apart)
        self._holders: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}

    def save(self, tensor: Tensor) -> Saved:
        """Hold the storage of ``tensor`` until nobody has what this returns: a graph that is dropped on the way gives its storages'
        places to others."""
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        self._holders[place] += 1
        self._sizes[place] = storage.nbytes()
        return Saved(tensor.detach(), self, place)

    def let_go(self, place: int) -> None:
        self._holders[place] -= 1

    def count(self) -> None:
        self.bytes = sum(
            self._sizes[place] for place, holders in self._holders.items() if holders and place not in self._apart
        )


class Saved:
    """A tensor that autograd holds: detached, so that an output saved by its own node makes no cycle."""

    __slots__ = ("_held", "_place", "tensor")

    def __init__(self, tensor: Tensor, held: Held, place: int) -> None:
        self.tensor, self._held, self._place = tensor, held, place

    def __del__(self) -> None:
        self._held.let_go(self._place)


@contextmanager
def held_for_backward(model: torch.nn.Module, device: torch.device) -> Iterator[Held]:
    """Counts what the block, a forward pass of ``model``, holds for its backward pass; read ``bytes`` after the block."""
    held = Held(p.untyped_storage().data_ptr() for p in model.parameters())
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        yield held
        held.bytes = max(0, torch.cuda.memory_allocated(device) - before)
        return
    with saved_tensors_hooks(held.save, lambda saved: saved.tensor):
        yield held
    held.count()


class Activations:
    """The most that a chunk of one step holds. On a CPU the first chunk is measured, on a GPU all are."""

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self._model, self._device = model, device
        self._sharded = any(
            is_sharded(p) for p in model.parameters()
        )  # its layers' weights come and go, and are saved meanwhile
        self._measured: list[Held] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """The block is the forward pass of one chunk."""
        if self._device.type != "cuda" and (self._measured or self._sharded):
            yield
            return
        with held_for_backward(self._model, self._device) as held:
            yield
        self._measured.append(held)

    def metrics(self, optimizers: Optimizers) -> dict[str, float]:
        """The step's memory figures, in bytes; activations are left out if the step had no chunk."""
        bytes_of = {id(p): p.nbytes for p in self._model.parameters()}
        trained = {id(p) for p in self._model.parameters() if p.requires_grad}
        found: dict[str, Any] = {
            "parameter_bytes": sum(bytes_of.values()),
            "trained_parameter_bytes": sum(bytes_of[i] for i in trained),
            "optimizer_state_bytes": optimizers.state_bytes(),
        }
        if self._measured:
            found["activation_memory_bytes"] = max(held.bytes for held in self._measured)
        return {name: float(value) for name, value in found.items()}
