"""Where a model, its reference and its optimizers' state lie: on the device, or in the host's memory between uses."""

from __future__ import annotations

from typing import Any

import torch


class Residence:
    """Moves a model, its optimizers' state and its reference out of the device and back in; on a CPU it does nothing.

    ``optimizers`` and ``reference`` may be None. ``device`` is where the model computes. Call between steps: gradients stay.
    """

    def __init__(self, model: Any, optimizers: Any = None, reference: Any = None, device: Any = None) -> None:
        self.device = torch.device(device if device is not None else model.device)
        self._model, self._optimizers, self._reference = model, optimizers, reference

    def to_host(self) -> None:
        """Everything to the host; the device's memory is given back to whoever needs it."""
        self._move(torch.device("cpu"))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def to_device(self) -> None:
        """Everything back."""
        self._move(self.device)

    def _move(self, device: torch.device) -> None:
        if self.device.type == "cpu":
            return
        for module in (self._model, self._reference):
            if module is not None:
                module.to(device)
        if self._optimizers is not None:
            self._optimizers.state_to(device)
