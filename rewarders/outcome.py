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
    """The environment's outcome of the episode. Abstains if the environment gave none, except for an episode that
    reached a limit (tokens, turns, seconds) before its end: that gets ``unfinished``, because running out of turns
    would otherwise never be punished.

    The environment's values of single replies (``Turn.value``) become values of the replies' tokens.
    """

    unfinished: float = 0.0

    def __call__(self, sample: Trajectory) -> Reward | None:
        if sample.outcome is not None:
            told = ((segment, reply.value) for segment, reply in _replies(sample))
            spans = tuple(ValueSpan(s.start, s.end, value) for s, value in told if value is not None)
            return Reward(sample.outcome, sample.why or "said by the environment", spans=spans)
        if sample.finish_reason in CUT:
            return Reward(self.unfinished, f"the environment said nothing before the limit ({sample.finish_reason})")
        return None
