"""Which complete groups are trained, and what is told of all that were judged."""

from __future__ import annotations

from statistics import fmean

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


def summarise(
    seen: list[tuple[Group, list[Judged]]], dropped: list[Dropped], table: Training | None
) -> dict[str, float]:
    """Means over all groups that were judged since the manifest before, trained or not."""
    metrics: dict[str, float] = {}
    rewards = [j.reward for _, judged in seen for j in judged]
    if rewards:
        metrics["reward_mean"] = fmean(rewards)
        metrics["response_length_mean"] = fmean(j.trajectory.response_tokens for _, judged in seen for j in judged)
        metrics["groups_seen"] = float(len(seen))
        if table is not None:
            metrics["zero_variance_group_ratio"] = fmean(is_flat(judged, table) for _, judged in seen)
        by_rewarder: dict[str, list[float]] = {}
        for group, judged in seen:
            for trajectory, *_ in judged:
                for name, vote in group.votes_on(trajectory.index).items():
                    if vote.value is not None:
                        by_rewarder.setdefault(name, []).append(vote.value)
        metrics.update((f"reward/{name}", fmean(values)) for name, values in by_rewarder.items())
    for reason in {d.reason for d in dropped}:
        metrics[f"dropped/{reason}"] = float(sum(d.reason == reason for d in dropped))
    return metrics
