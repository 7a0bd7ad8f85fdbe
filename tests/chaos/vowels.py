"""A rewarder of a user's own, in a file beside the run file."""

from __future__ import annotations

from dataclasses import dataclass

from broker.messages import Trajectory
from rewarders.rewarder import Reward


@dataclass(frozen=True)
class Vowels:
    """The share of vowels: any text has some."""

    letters: str = "aeiou"

    def __call__(self, sample: Trajectory) -> Reward | None:
        return Reward(sum(c in self.letters for c in sample.text) / max(1, len(sample.text)), "share of vowels")
