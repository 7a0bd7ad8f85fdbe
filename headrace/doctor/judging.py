"""Rewarders that are not there, out of order, or behind."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.doctor.evidence import Evidence
from headrace.doctor.finding import Finding, Rule, command
from monitoring.metrics import LearnerMetrics, RewarderMetrics

GAP = 0.15  # the same threshold as the alert's


def no_rewarder(e: Evidence) -> Iterator[Finding]:
    for name in e.whole.run.rewards:
        waiting = e.waiting.unjudged[name]
        serving = [d for d in e.of("rewarder") if name in d.labelled(str(RewarderMetrics.restarts), "rewarder")]
        table = e.whole.rewarders.get(name)
        if serving or not waiting:
            continue
        start = command(e, "rewarder", "--rewarder", name)
        if table is not None and table.external:
            group = e.run.topics.group(f"rewarder.{name}")
            if _moves(e, group):
                continue
            start = f"start your program; it is to read {e.run.topics.trajectories} in group {group}"
        yield Finding(f"no rewarder serves {name!r}", f"{waiting} groups wait for its votes", start)


def _moves(e: Evidence, group: str) -> bool:
    """Whether a group has committed something between the two looks, or has nothing to do."""
    topic = e.run.topics.trajectories
    before, now = e.earlier_lags.get((group, topic), {}), e.lags.get((group, topic))
    return now is not None and (sum(now.values()) == 0 or any(now[p] < before.get(p, 0) for p in now))


def out_of_order(e: Evidence) -> Iterator[Finding]:
    """A rewarder whose judge is away: it holds its samples, and no deadline of theirs runs."""
    for daemon in e.of("rewarder"):
        page = e.pages.get(daemon.entry.name, {})
        if page.get("state") != "outage":
            continue
        yield Finding(
            f"rewarder {page['rewarder']!r} is out of order, and {daemon.entry.name} holds its samples",
            f"for {page['seconds']:.0f} s, {page['held']} samples, tried again in {page['next_try']:.0f} s; the last error: {page['error']}",
            "bring back what it asks, or correct its table in the run file, which is followed; it goes on by itself, and no group is lost",
        )


def sandbox_degraded(e: Evidence) -> Iterator[Finding]:
    for daemon in e.of("rewarder"):
        for name, degraded in daemon.labelled(str(RewarderMetrics.degraded), "rewarder").items():
            if degraded:
                yield Finding(
                    f"the sandbox of rewarder {name!r} fails its self-test: {daemon.entry.name} takes no samples",
                    e.words.get(daemon.entry.name, "its log says what was not held in"),
                    "`headrace doctor` on that machine tries the same; see docs/sandbox.md",
                )


def gamed(e: Evidence) -> Iterator[Finding]:
    for name, gap in e.of_learner(str(LearnerMetrics.reward_gap), "rewarder").items():
        if gap > GAP:
            yield Finding(
                f"rewarder {name!r} may be gamed: it gives more, and others do not agree",
                f"its mean has risen while held-out accuracy or a shadow has fallen, {gap:.2f} together over the last evaluations",
                f"read samples that it likes (`headrace trace {e.run.directory} STEP`), and compare it with another: `headrace report {e.run.directory} --votes A B`",
                False,
            )


def slow_rewarder(e: Evidence) -> Iterator[Finding]:
    """A group that has a step's worth of samples before it, and does not get through them."""
    table, topic = e.whole.learner.learner, e.run.topics.trajectories
    for name in e.whole.run.rewards if e.of("rewarder") else ():
        group = e.run.topics.group(f"rewarder.{name}")
        total, before = e.lag(group, topic), sum(e.earlier_lags.get((group, topic), {}).values())
        if total >= max(before, table.groups_per_step * table.group_size):
            yield Finding(
                f"rewarder {name!r} is behind",
                f"{before} samples before it, {total} a moment later",
                f"raise [rewarders.{name}] processes or workers, lower its timeout, or start more on other machines",
            )


RULES: tuple[Rule, ...] = (out_of_order, sandbox_degraded, no_rewarder)
NOTICES: tuple[Rule, ...] = (gamed,)
