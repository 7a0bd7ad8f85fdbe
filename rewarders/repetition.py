"""A penalty for text that repeats earlier n-grams. It detects loops of any period, in any script."""

from __future__ import annotations

from dataclasses import dataclass

from broker.errors import MessageError
from broker.messages import Trajectory
from monitoring.writing import repeated_ngrams
from rewarders.parts import part
from rewarders.rewarder import Reward


@dataclass(frozen=True)
class Repetition:
    """0 while at most the share ``allowed`` of the n-grams of ``n`` terms repeats an earlier one, then falling linearly to -1 where all do.

    Terms are words, numbers and signs, one character in scripts without spaces; a run of letters is cut every 8, so that a word without
    an end repeats itself too. A text of fewer than ``n + 1`` terms repeats nothing.
    """

    n: int = 12
    allowed: float = 0.1
    sees: str = "response"

    def __post_init__(self) -> None:
        part(self.sees)
        if self.n < 1:
            raise MessageError(f"n = {self.n}; it must be at least 1")
        if not 0 <= self.allowed < 1:
            raise MessageError(f"allowed = {self.allowed}; it must be a share in [0, 1)")

    def __call__(self, sample: Trajectory) -> Reward:
        repeated, total = repeated_ngrams(part(self.sees)(sample.text, ""), self.n)
        share = repeated / total if total else 0.0
        over = max(0.0, share - self.allowed) / (1 - self.allowed)
        return Reward(-over, f"{repeated} of {total} {self.n}-grams stood before")
