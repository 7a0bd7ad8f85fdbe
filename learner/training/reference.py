"""The reference policy of a divergence: a frozen copy of the policy, or with adapters the base model itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from learner.model import lora


class AdapterReference:
    """The policy that an adapted ``model`` began with: its base, or after a refresh its base with the adapters as they were then."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._adapters: dict[str, Tensor] = {}

    @contextmanager
    def policy(self) -> Iterator[Any]:
        """The model as the reference, within the block. No graph of the policy may be open."""
        if not self._adapters:
            with lora.disabled(self._model):
                yield self._model
            return
        now = _clones(self._model)
        lora.load_adapters(self._model, self._adapters)
        try:
            yield self._model
        finally:
            lora.load_adapters(self._model, now)

    def refresh(self) -> None:
        """The reference is from now on the policy as it is."""
        self._adapters = _clones(self._model)

    def state_dict(self) -> dict[str, Tensor]:
        """The adapters of the last refresh; empty before it."""
        return dict(self._adapters)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        here = lora.adapters(self._model)
        self._adapters = {name: tensor.to(here[name].device) for name, tensor in state.items()}


def _clones(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in lora.adapters(model).items()}


def reference_of(model: Any) -> Any:
    """The policy as it is, as a reference that is never trained."""
    if lora.is_adapted(model):
        reference = AdapterReference(model)
        if any(bool(t.count_nonzero()) for name, t in lora.adapters(model).items() if ".lora_B." in name):
            reference.refresh()  # in the middle of a stage the policy is not the base any more
        return reference
    return copy.deepcopy(model).eval().requires_grad_(False)


@contextmanager
def scored_by(reference: Any) -> Iterator[Any]:
    """The model that computes the reference policy, within the block."""
    if isinstance(reference, AdapterReference):
        with reference.policy() as model:
            yield model
    else:
        yield reference


def refresh(reference: Any, model: Any) -> None:
    """Make ``reference`` the policy of ``model`` as it is."""
    if isinstance(reference, AdapterReference):
        reference.refresh()
    else:
        reference.load_state_dict(model.state_dict())
