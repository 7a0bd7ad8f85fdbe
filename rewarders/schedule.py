"""A rewarder that judges only from some step on: a reward that can be hacked is given for the last steps of a run (R1, section 2.3.4).

A sample knows the policy versions that sampled it, not the step it will be trained in. So that one group is never judged by two measures,
the *oldest* version of the whole group decides for all of it: it is at most ``max_lag`` steps before the step that trains the group.
Versions count the steps of the run, not of a stage. Where the run file's stage can change the reward mix itself, that is exact and cheaper,
because the mix travels with the prompt; this rewarder needs nothing of the kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from broker.errors import MessageError
from broker.messages import Trajectory
from rewarders.inner import Inner
from rewarders.rewarder import GroupRewarder, Reward


@dataclass(frozen=True, kw_only=True)
class Schedule(GroupRewarder):
    """The rewarder of ``judge_by`` (a table with ``use`` and options) for groups that begin at version ``from_step`` or later.

    ``last_steps`` of ``total`` steps is the same as ``from_step = total - last_steps``; ``until_step`` ends it (0: never). All other groups
    get an abstention. Evaluations are always judged.
    """

    judge_by: str | Mapping[str, Any]
    from_step: int = 0
    until_step: int = 0
    last_steps: int = 0
    total: int = 0

    def __post_init__(self) -> None:
        if self.last_steps and self.from_step:
            raise MessageError(f"last_steps = {self.last_steps}, from_step = {self.from_step}; give one of them")
        if self.last_steps and self.total < self.last_steps:
            raise MessageError(
                f"last_steps = {self.last_steps}, total = {self.total}; total must say how many steps the run has"
            )
        if self.until_step and self.until_step <= self.begin:
            raise MessageError(
                f"until_step = {self.until_step}; it must be above the step it begins with, {self.begin}"
            )
        _ = self._inner

    @property
    def begin(self) -> int:
        return self.total - self.last_steps if self.last_steps else self.from_step

    @cached_property
    def _inner(self) -> Inner:
        return Inner(self.judge_by)

    def judge(self, samples: Sequence[Trajectory]) -> Sequence[Reward | None]:
        version = min((sample.oldest_version for sample in samples), default=0)
        training = any(sample.purpose == "train" for sample in samples)
        if training and (version < self.begin or (self.until_step and version >= self.until_step)):
            return [None] * len(samples)
        return self._inner.judge(samples)
