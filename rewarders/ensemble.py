"""Combines several judges into one reward that is lower where they disagree, so that a policy cannot exploit the errors
of one judge.

Coste et al., Reward Model Ensembles Help Mitigate Overoptimization, arXiv 2310.02743: ``uncertainty`` is their UWO,
``worst`` their WCO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, pvariance
from typing import Any

from broker.errors import MessageError
from broker.messages import Trajectory
from broker.spelling import nearest
from rewarders.inner import Inner
from rewarders.rewarder import GroupRewarder, Reward


def uncertainty(values: Sequence[float], penalty: float) -> float:
    """Mean - ``penalty`` times the variance over the judges."""
    return fmean(values) - penalty * pvariance(values)


def worst(values: Sequence[float], penalty: float) -> float:
    """The lowest value, whatever the penalty."""
    return min(values)


RULES: dict[str, Callable[[Sequence[float], float], float]] = {"uncertainty": uncertainty, "worst": worst}


@dataclass(frozen=True, kw_only=True)
class Ensemble(GroupRewarder):
    """``members`` are tables with ``use`` and options, each as in the run file. ``rule`` is ``uncertainty`` (with
    ``penalty``) or ``worst``.

    A member that abstains is left out; if fewer than ``need`` members judged a sample, the ensemble abstains. An error
    of a member is an error of the ensemble.
    """

    members: Sequence[str | Mapping[str, Any]]
    rule: str = "uncertainty"
    penalty: float = 1.0
    need: int = 1

    def __post_init__(self) -> None:
        if not self.members:
            raise MessageError("members = []; it must name at least one rewarder")
        if self.rule not in RULES:
            raise MessageError(
                f"rule = {self.rule!r}; it must be one of {', '.join(RULES)}{nearest(self.rule, list(RULES))}"
            )
        if not 1 <= self.need <= len(self.members):
            raise MessageError(f"need = {self.need}; it must be from 1 to the number of members, {len(self.members)}")
        _ = self._members

    @cached_property
    def _members(self) -> list[Inner]:
        return [Inner(member) for member in self.members]

    def judge(self, samples: Sequence[Trajectory]) -> Sequence[Reward | None]:
        votes = zip(*(member.judge(samples) for member in self._members), strict=True)
        return [self._joined([reward.value for reward in of_sample if reward is not None]) for of_sample in votes]

    def _joined(self, values: list[float]) -> Reward | None:
        if len(values) < self.need:
            return None
        return Reward(RULES[self.rule](values, self.penalty), " ".join(f"{value:.3f}" for value in values))
