"""The reward that an environment gives: an episode's outcome becomes a vote like any other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from broker.messages import Reply, Segment, Trajectory
from broker.verdicts import ValueSpan
from rewarders.rewarder import Reward

CUT = ("length", "turns")


def _replies(sample: Trajectory) -> Iterator[tuple[Segment, Reply]]:
    """The model's turns, each with its tokens."""
    spoken = (segment for segment in sample.segments if segment.trainable)
    return zip(spoken, sample.replies, strict=False)


@dataclass(frozen=True)
class Outcome:
    """What the environment made of the episode. It abstains where the environment said nothing, but for an episode that ran into a limit
    (tokens, turns, seconds) before its end: that is worth ``unfinished``, for else running out of turns would never be punished.

    What the environment said of single replies (``Turn.value``) goes along as values of their tokens."""

    unfinished: float = 0.0

    def __call__(self, sample: Trajectory) -> Reward | None:
        if sample.outcome is not None:
            told = ((segment, reply.value) for segment, reply in _replies(sample))
            spans = tuple(ValueSpan(s.start, s.end, value) for s, value in told if value is not None)
            return Reward(sample.outcome, sample.why or "said by the environment", spans=spans)
        if sample.finish_reason in CUT:
            return Reward(self.unfinished, f"the environment said nothing before the limit ({sample.finish_reason})")
        return None
