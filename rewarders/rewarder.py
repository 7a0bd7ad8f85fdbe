"""What a rewarder is: a class with options as fields and a call. The same shape for the built-in ones and a user's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from broker.errors import MessageError
from broker.messages import Trajectory
from broker.verdicts import ValueSpan


@dataclass(frozen=True, slots=True)
class Reward:
    """A verdict: a finite value, and why (shown by ``headrace trace`` and the report).

    ``answer``, ``cause`` and ``spans`` are those of a Vote.
    """

    value: float
    why: str = ""
    answer: str = ""
    cause: str = ""
    spans: tuple[ValueSpan, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not math.isfinite(self.value):
            raise MessageError(f"reward value is {self.value!r}; it must be a finite number")


class Rewarder(Protocol):
    """Judges one sample: a Reward, a number, or None to abstain. Whatever it raises is an error, never a reward of 0.

    A rewarder that must prove something before it may judge also has ``prepare()``, which is called once in each judging process and raises if it may not
    (SandboxError: the daemon takes no samples, says why, and tries again).
    """

    def __call__(self, sample: Trajectory) -> Reward | float | None: ...
