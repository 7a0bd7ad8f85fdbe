"""The policy's weights as published: under the base model's names, with adapters merged, in the requested dtype.

Each tensor is computed on access, so that there is never a second model in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from learner.model import lora


class PolicyWeights(Mapping[str, Tensor]):
    """The state of ``model`` by name. Floating-point parameters are rounded to ``dtype`` (None: not rounded).

    ``tied = False`` lists a shared tensor under its first name only. ``adapted = False`` gives the weights below the adapters.
    Without adapters and rounding a tensor is the model's own, not a copy.
    """

    def __init__(
        self, model: Any, dtype: torch.dtype | None = None, *, tied: bool = True, adapted: bool = True
    ) -> None:
        self._dtype = dtype
        self._layers = dict(lora.layers(model))
        self._adapted = adapted
        self._parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._tensors: dict[str, tuple[str, Tensor]] = {}
        seen: set[int] = set()
        for name, tensor in model.state_dict().items():
            layer, _, inside = name.rpartition(".base_layer.")
            if layer in self._layers:
                known = f"{layer}.{inside}"
            elif name.split(".lora_")[0] in self._layers:
                continue
            else:
                known = name
            if tied or tensor.data_ptr() not in seen:
                self._tensors[known] = name, tensor
            seen.add(tensor.data_ptr())

    def __getitem__(self, name: str) -> Tensor:
        inside, tensor = self._tensors[name]
        layer = self._layers.get(name.removesuffix(".weight")) if self._adapted and name.endswith(".weight") else None
        if layer is not None:
            tensor = lora.merged(layer)
        if self._dtype is not None and inside in self._parameters and tensor.is_floating_point():
            tensor = tensor.to(self._dtype)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
