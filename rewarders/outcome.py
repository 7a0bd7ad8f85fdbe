"""The reward that an environment gives: an episode's outcome becomes a vote like any other."""

from __future__ import annotations

from dataclasses import dataclass

from broker.messages import Trajectory
from rewarders.rewarder import Reward

CUT = ("length", "turns")


@dataclass(frozen=True)
class Outcome:
    """What the environment made of the episode. It abstains where the environment said nothing, but for an episode that ran into a limit
    (tokens, turns, seconds) before its end: that is worth ``unfinished``, for else running out of turns would never be punished."""

    unfinished: float = 0.0

    def __call__(self, sample: Trajectory) -> Reward | None:
        if sample.outcome is not None:
            return Reward(sample.outcome, "said by the environment")
        if sample.finish_reason in CUT:
            return Reward(self.unfinished, f"the environment said nothing before the limit ({sample.finish_reason})")
        return None
