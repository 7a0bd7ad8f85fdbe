"""Detects gradients that are not finite: a single step is skipped and logged, many in a row end the run, because no later step recovers."""

from __future__ import annotations

import logging
import math

from broker.errors import RunFault
from broker.patience import Seldom

log_ = logging.getLogger("learner")
HOPELESS_STEPS = 8
SAID_SECONDS = 20.0  # between two words on tokens that are left out


class Finite:
    """Counts steps whose gradient is infinite or not a number. The optimizer leaves the weights as they are at such a step."""

    def __init__(self) -> None:
        self._row, self._seldom = 0, Seldom(SAID_SECONDS)

    def take(self, step: int, norm: float | None, invalid: float = 0.0) -> None:
        """Take in the gradient norm of a step (None: it had none), and how many of its tokens were left out because what belongs to them is
        not finite. Raises RunFault once ``HOPELESS_STEPS`` gradients in a row were not finite."""
        if invalid and self._seldom():
            log_.warning(
                "%d tokens of step %d are left out: their log-probability, a teacher's or an advantage is not finite",
                invalid,
                step,
            )
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
