"""Where a model, its reference and its optimizer's state are kept: on the device, or in the host's memory between uses.

``stow`` and ``fetch`` move the values below parameters that stay the same objects, so optimizers, tied weights and hooks hold.
On a GPU the host's copies are pinned and kept, so that a move costs one transfer and no allocation. Gradients stay
where they are: call between steps. Sharded parameters (DTensor) are beyond it: FSDP2 has an offload policy of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class _Copy:
    """A parameter's place in the host's memory, and the version of the parameter that it holds."""

    tensor: Tensor
    version: int


class Parameters:
    """The parameters of one module, which computes on ``device``, and their places in the host's memory."""

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self._module, self._device = module, device
        self._copies: dict[torch.nn.Parameter, _Copy] = {}

    @torch.no_grad()
    def stow(self) -> None:
        """Move the values to the host; frozen ones that have not changed since they were fetched are not copied again."""
        out = [p for p in self._module.parameters() if not self._is_away(p)]
        for parameter in out:
            held = self._copies.get(parameter)
            if held is None or parameter.requires_grad or held.version != parameter._version:
                place = to_host(parameter, held.tensor if held is not None else None)
                self._copies[parameter] = _Copy(place, parameter._version)
        synchronise(out)
        for parameter in out:
            parameter.data = self._copies[parameter].tensor

    @torch.no_grad()
    def fetch(self) -> None:
        """Move the values back to the device; the host's places are kept."""
        for parameter in self._module.parameters():
            if self._is_away(parameter):
                self._copies[parameter] = _Copy(parameter.data, parameter._version)
                parameter.data = to_device(parameter, self._device)

    def _is_away(self, parameter: torch.nn.Parameter) -> bool:
        """Whether the values are in the host's memory, because they were stowed here or elsewhere."""
        held = self._copies.get(parameter)
        stowed = held is not None and held.tensor.data_ptr() == parameter.data_ptr()
        return stowed or parameter.device.type != self._device.type


def to_host(tensor: Tensor, place: Tensor | None = None) -> Tensor:
    """A copy in the host's memory, in ``place`` if that is given; pinned, and under way only, if it comes from a GPU."""
    if place is None:
        place = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return place.copy_(tensor.detach(), non_blocking=True)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on ``device``; under way only, and in order with what is computed there, if that is a GPU."""
    return torch.empty_like(tensor, device=device).copy_(tensor, non_blocking=True)


def synchronise(tensors: Iterable[Tensor]) -> None:
    """Wait for copies from the devices that these tensors lie on."""
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.synchronize(device)


class Residence:
    """Moves a model, its optimizers' state and its reference out of the device and back in; on a CPU it does nothing.

    ``optimizers`` and ``reference`` may be None. ``device`` is where the model computes.
    """

    def __init__(self, model: Any, optimizers: Any = None, reference: Any = None, device: Any = None) -> None:
        self.device = torch.device(device if device is not None else model.device)
        self._optimizers = optimizers
        self._model = Parameters(model, self.device)
        self._reference = Parameters(reference, self.device) if isinstance(reference, torch.nn.Module) else None

    def to_host(self) -> None:
        """Everything to the host; the device's memory is given back to whoever needs it."""
        self.model_to_host()
        self.reference_to_host()
        if self.device.type == "cuda":
            if self._optimizers is not None:
                self._optimizers.state_to(torch.device("cpu"))
            torch.cuda.empty_cache()

    def to_device(self) -> None:
        """Everything back (but the optimizers' state if it is offloaded anyway)."""
        self.model_to_device()
        self.reference_to_device()
        if self.device.type == "cuda" and self._optimizers is not None and not self._optimizers.offload:
            self._optimizers.state_to(self.device)

    def model_to_host(self) -> None:
        if self.device.type == "cuda":
            self._model.stow()

    def model_to_device(self) -> None:
        if self.device.type == "cuda":
            self._model.fetch()

    def reference_to_host(self) -> None:
        if self.device.type == "cuda" and self._reference is not None:
            self._reference.stow()

    def reference_to_device(self) -> None:
        if self.device.type == "cuda" and self._reference is not None:
            self._reference.fetch()
