"""Notices that training has left the finite numbers: one such step is left out and said, and many in a row end the run, for no later one heals."""

from __future__ import annotations

import logging
import math

from broker.errors import RunFault

log_ = logging.getLogger("learner")
HOPELESS_STEPS = 8


class Finite:
    """Counts steps whose gradient is infinite or not a number. The optimizer leaves the weights as they are at such a step."""

    def __init__(self) -> None:
        self._row = 0

    def take(self, step: int, norm: float | None) -> None:
        """Take in the gradient norm of a step (None: it had none). Raises RunFault once ``HOPELESS_STEPS`` in a row were not finite."""
        if norm is None or math.isfinite(norm):
            self._row = 0
            return
        self._row += 1
        log_.warning("the gradient of step %d is not finite (norm %s): the weights stay as they are", step, norm)
        if self._row >= HOPELESS_STEPS:
            raise RunFault(
                f"the gradients of {self._row} steps in a row, up to step {step}, are not finite: the weights or the data are broken; "
                "go back to a checkpoint before that (headrace fork), and lower optimizer.lr"
            )
