"""The one rule by which votes become a reward, and by which a reward becomes what is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from broker.messages import FloatArray, Trajectory, Vote
from broker.verdicts import ValueSpan
from learner.tables import FLAT, Training

NO_STEPS: Mapping[str, tuple[ValueSpan, ...]] = {}


class Judged(NamedTuple):
    """One sample with its reward, as the executor trains on it.

    ``steps``: values of single steps of the response, by rewarder. ``teacher``: a teacher's log-probabilities of the trained tokens, in order.
    """

    trajectory: Trajectory
    reward: float
    steps: Mapping[str, tuple[ValueSpan, ...]] = NO_STEPS
    teacher: FloatArray | None = None


REWARD_RULE = 3
"""How votes become a reward now; a manifest says by which rule its own did. 1: who abstains counts as 0. 2: where all abstained whose weight is
not 0, the reward is 0, and one may be of any size."""
LARGEST = 1e30
"""A reward beyond this is none: nothing can be compared with it in float32."""


def reward_of(mix: Mapping[str, float], votes: Mapping[str, Vote], rule: int = REWARD_RULE) -> float | None:
    """Weighted sum over the rewarders of ``mix`` that gave a value, in the mix's order.

    The weights of those that abstained go to the others in proportion, so that an abstention neither rewards nor punishes. None where the
    sample cannot be judged: a rewarder of the mix has not voted or failed, all abstained whose weight is not 0, or the sum is beyond
    ``LARGEST``. A failure is never a reward of 0.
    """
    total, values, heard, silent = 0.0, 0, 0.0, 0.0
    for name, weight in mix.items():
        vote = votes.get(name)
        if vote is None or vote.outcome == "error":
            return None
        if vote.value is not None:
            total += weight * vote.value
            heard += abs(weight)
            values += 1
        else:
            silent += abs(weight)
    if not values or (rule > 2 and (not abs(total) <= LARGEST or (silent and not heard))):
        return None
    return total * (heard + silent) / heard if rule > 1 and silent and heard else total


def judge(
    trajectory: Trajectory, mix: Mapping[str, float], votes: Mapping[str, Vote], rule: int = REWARD_RULE
) -> Judged | None:
    """``trajectory`` with its reward and what else the rewarders of ``mix`` said; None where it cannot be judged.

    It also cannot be judged if values or log-probabilities do not fit the sample's tokens, or a step's value is beyond ``LARGEST``. Several teachers
    are averaged.
    """
    reward = reward_of(mix, votes, rule)
    if reward is None:
        return None
    said = {name: votes[name] for name in mix}
    steps = {name: vote.spans for name, vote in said.items() if vote.spans}
    teachers = [np.frombuffer(vote.logprobs, "<f4") for vote in said.values() if vote.logprobs]
    trained, length = int(trajectory.mask().sum()), len(trajectory.tokens)
    if any(len(t) != trained for t in teachers) or any(s.end > length for spans in steps.values() for s in spans):
        return None
    if rule > 2 and any(abs(s.value) > LARGEST for spans in steps.values() for s in spans):
        return None
    teacher = np.stack(teachers).mean(0, dtype=np.float32) if teachers else None
    return Judged(trajectory, reward, steps or NO_STEPS, teacher)


def trained_rewards(judged: Sequence[Judged], table: Training) -> list[float]:
    """What the samples' advantages come from: their rewards, less the penalty on long answers; of an episode its longest reply counts."""
    buffer, factor = table.overlong_buffer, table.overlong_penalty

    def penalty(sample: Trajectory) -> float:
        return overlong_penalty(_longest(sample), sample.sampling.max_new_tokens, buffer, factor)

    return [sample.reward + penalty(sample.trajectory) for sample in judged]


def _longest(sample: Trajectory) -> int:
    return max((s.end - s.start for s in sample.segments if s.trainable), default=0)


def overlong_penalty(tokens: int, longest: int, buffer: int, factor: float) -> float:
    """What is added to the reward of a response of ``tokens`` tokens (DAPO, arXiv 2503.14476 eq. 13).

    0 up to ``longest - buffer`` tokens, then falling linearly to ``-factor`` at ``longest``; always 0 without a ``buffer``.
    """
    if not buffer:
        return 0.0
    return -factor * min(max((tokens - (longest - buffer)) / buffer, 0.0), 1.0)


def is_flat(judged: Sequence[Judged], table: Training) -> bool:
    """Whether no sample of a group is better than another after all that makes the reward: their advantages are zero."""
    if len(judged) < 2 or any(sample.steps or sample.teacher is not None for sample in judged):
        return False
    rewards = trained_rewards(judged, table)
    return max(rewards) - min(rewards) <= FLAT * max(abs(r) for r in rewards)
