"""Rewards for the length of a response: DAPO's soft punishment of overlong ones, and a length penalty that depends on
the difficulty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from broker.errors import MessageError
from broker.messages import Trajectory
from rewarders.inner import Inner, pass_rate
from rewarders.rewarder import GroupRewarder, Reward


@dataclass(frozen=True)
class Overlong:
    """0 up to ``limit - buffer`` tokens, then falling linearly to -1 at ``limit`` (DAPO, arXiv 2503.14476, equation 13).

    ``limit`` in tokens (0: what the sample's sampling allows); ``buffer`` in tokens, or with a number below 1 as a share of the limit.
    ``[learner] overlong_buffer`` adds the same to the reward without a vote; as a rewarder it is recorded, and can be a shadow.
    """

    limit: int = 0
    buffer: float = 0.2

    def __post_init__(self) -> None:
        if self.buffer <= 0:
            raise MessageError(f"buffer = {self.buffer}; it must be above 0: tokens, or below 1 a share of the limit")

    def __call__(self, sample: Trajectory) -> Reward:
        limit = self.limit or sample.sampling.max_new_tokens
        buffer = self.buffer * limit if self.buffer < 1 else min(self.buffer, limit)
        over = (sample.response_tokens - (limit - buffer)) / buffer
        return Reward(-min(1.0, max(0.0, over)), f"{sample.response_tokens} of {limit} tokens")


@dataclass(frozen=True)
class CalibratedLength(GroupRewarder):
    """A length penalty that is higher for easier questions: ``-(tokens / scale) * max(p, 1 / G)`` with the group's own
    pass rate ``p``.

    ALP, arXiv 2506.05256: a question that every sample solves should be solved briefly, one that few solve may take
    long. ``correct`` is the rewarder that decides what is right (``"module:Class"`` or a table with its options): a
    value of at least ``threshold``. ``scale`` in tokens (0: what the sampling allows); the value is at least -1.
    ``only_right``: a wrong sample gets no penalty. Abstains if ``correct`` judges none of the group.
    """

    correct: str | Mapping[str, Any] = "rewarders.math:MathAccuracy"
    threshold: float = 0.5
    scale: int = 0
    only_right: bool = False

    def __post_init__(self) -> None:
        _ = self._correct

    @cached_property
    def _correct(self) -> Inner:
        return Inner(self.correct)

    def judge(self, samples: Sequence[Trajectory]) -> Sequence[Reward | None]:
        verdicts = self._correct.judge(samples)
        rate = pass_rate(verdicts, self.threshold)
        if rate is None:
            return [None] * len(samples)
        price = max(rate, 1 / len(samples))
        rewards: list[Reward | None] = []
        for sample, verdict in zip(samples, verdicts, strict=True):
            right = verdict is not None and verdict.value >= self.threshold
            used = min(1.0, sample.response_tokens / (self.scale or sample.sampling.max_new_tokens))
            value = 0.0 if self.only_right and not right else -used * price
            rewards.append(Reward(value, f"{sample.response_tokens} tokens at a pass rate of {rate:.2f}"))
        return rewards
