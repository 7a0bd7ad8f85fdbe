"""Decides which complete groups are trained, and sums up all groups that were judged."""

from __future__ import annotations

from broker.messages import Dropped
from learner.planning.fates import Reason
from learner.planning.groups import Group
from learner.planning.rewards import Judged, is_flat
from learner.tables import Training


def gate(group: Group, judged: list[Judged], table: Training, step: int) -> Reason | None:
    """Why a complete group is not trained at ``step``; None if it is."""
    if len(judged) < min(2, table.group_size):
        return Reason.UNJUDGED
    if max(trajectory.staleness(step) for trajectory, _ in group.samples.values()) > table.max_lag:
        return Reason.STALE
    if table.drop_zero_variance and is_flat(judged, table):
        return Reason.ZERO_VARIANCE
    return None


class Seen:
    """Sums over all groups judged since the previous manifest, trained or not. The groups themselves are not kept."""

    def __init__(self) -> None:
        self._groups = self._samples = self._flat = self._told = 0
        self._rewards = self._lengths = 0.0
        self._values: dict[str, tuple[float, int]] = {}

    def add(self, group: Group, judged: list[Judged], table: Training | None) -> None:
        self._groups += 1
        if table is not None:
            self._told += 1
            self._flat += is_flat(judged, table)
        for trajectory, reward, *_ in judged:
            self._samples += 1
            self._rewards += reward
            self._lengths += trajectory.response_tokens
            for name, vote in group.votes_on(trajectory.index).items():
                if vote.value is not None:
                    total, count = self._values.get(name, (0.0, 0))
                    self._values[name] = total + vote.value, count + 1

    def metrics(self, dropped: list[Dropped]) -> dict[str, float]:
        """The means, and how many groups were dropped for which reason."""
        metrics: dict[str, float] = {}
        if self._samples:
            metrics["reward_mean"] = self._rewards / self._samples
            metrics["response_length_mean"] = self._lengths / self._samples
            metrics["groups_seen"] = float(self._groups)
            if self._told:
                metrics["zero_variance_group_ratio"] = self._flat / self._told
            metrics.update((f"reward/{name}", total / count) for name, (total, count) in self._values.items())
        for reason in {d.reason for d in dropped}:
            metrics[f"dropped/{reason}"] = float(sum(d.reason == reason for d in dropped))
        return metrics
