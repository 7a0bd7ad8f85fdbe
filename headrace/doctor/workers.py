"""Rules about learner, actors, servers and partitions that are missing or too slow."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.doctor.evidence import BETWEEN_SECONDS, Evidence
from headrace.doctor.finding import MOVING_SECONDS, PHASE_SINCE, Finding, Rule, command
from headrace.running.waits import waits
from monitoring.metrics import ActorMetrics, LearnerMetrics

BACKLOG = 16  # a partition with up to this many waiting records is not called slow
ONE_PARTITION = 0.8  # share of a group's backlog in one partition from which on that partition is named
GENERATED = str(ActorMetrics.generated_tokens)
PHASE_SECONDS = 10.0
EVICTIONS = 3


def no_learner(e: Evidence) -> Iterator[Finding]:
    if e.daemons and not e.log_error and e.learner is None:
        yield Finding(
            "no learner lives",
            f"{len(e.daemons)} other daemons do; last words: {e.words.get('learner-0', 'none')}",
            command(e, "learner"),
        )


def server_unwell(e: Evidence) -> Iterator[Finding]:
    for server in e.of("sglang"):
        if not server.healthy:
            yield Finding(
                f"SGLang server {server.entry.name} is not healthy",
                f"{server.entry.metrics}/health does not answer with 200",
                f"see {e.run.directory / 'sglang'}; a server that is launched by its actor is started again by it",
            )


def no_actors(e: Evidence) -> Iterator[Finding]:
    if e.learner is not None and not e.of("actor"):
        yield Finding(
            "no actor lives",
            f"{e.waiting.unsampled} groups wait for samples",
            f"{command(e, 'actor')} as often as you like, each with its --name",
        )


def no_weights(e: Evidence) -> Iterator[Finding]:
    for actor in e.of("actor"):
        if actor.now and actor.get(str(ActorMetrics.weight_version)) < 0:
            fix = "its server is away or has not taken weights yet: see its log, and /health of its servers"
            yield Finding(f"{actor.entry.name} has no weights", f"{ActorMetrics.weight_version} is below 0", fix)


def evictions(e: Evidence) -> Iterator[Finding]:
    for member, count in e.of_learner(str(LearnerMetrics.evictions), "member").items():
        if count >= EVICTIONS:
            yield Finding(
                f"broadcasts evict {member} again and again",
                f"{count:.0f} evictions: it answers no push within {e.whole.learner.learner.push_timeout:g} s",
                f"end {member} or its machine; or give it time by [learner] push_timeout, or others peace by lane = 1",
            )


WAITS = ("wait_data", "collect", "rewrite", "review")
"""Phases in which the learner does nothing but wait for others: ``long_waits`` says them."""


def learner_busy(e: Evidence) -> Iterator[Finding]:
    for phase, since in e.of_learner(PHASE_SINCE, "phase").items():
        if since and phase not in WAITS and e.now - since > PHASE_SECONDS:
            fix = {
                "checkpoint": "a slow file system below RUN/checkpoints? raise [learner] checkpoint_every",
                "publish": "the publisher has not taken the version before yet: see evictions, [learner] push_timeout, lane",
            }.get(phase, "the learner works: nothing waits but on it")
            yield Finding(f"the learner is in {phase}", f"for {e.now - since:.0f} s", fix)


def long_waits(e: Evidence) -> Iterator[Finding]:
    """The lines that ``headrace run`` and ``headrace top`` say, in their own words."""
    for line in waits(((d.entry, d.now) for d in e.daemons), e.now):
        yield Finding(
            line, "from the metrics of that daemon", "nothing, if it is short; else see its log in RUN/logs", False
        )


def slow_partition(e: Evidence) -> Iterator[Finding]:
    for (group, topic), lags in e.lags.items():
        total = sum(lags.values())
        worst, most = max(lags.items(), key=lambda item: item[1], default=(0, 0))
        before = e.earlier_lags.get((group, topic), {}).get(worst, 0)
        if len(lags) > 1 and most >= BACKLOG and most >= ONE_PARTITION * total and most >= before:
            yield Finding(
                f"partition {worst} of {topic} is slow for {group}",
                f"{most} of {total} open records lie in it, and they do not get fewer",
                "its member is stuck on one record, or too slow: see that worker's log, or end it, and others take its place",
            )


def slow_actors(e: Evidence) -> Iterator[Finding]:
    """The learner waits, and it is samples that it waits for."""
    phases = e.of_learner(PHASE_SINCE, "phase")
    since = phases.get("wait_data", 0.0) or phases.get("collect", 0.0)
    waits = e.now - since if since else 0.0
    if waits >= MOVING_SECONDS and e.waiting.unsampled >= e.whole.learner.learner.groups_per_step and e.of("actor"):
        tokens = sum(d.get(GENERATED) - d.before.get(GENERATED, 0.0) for d in e.of("actor")) / BETWEEN_SECONDS
        yield Finding(
            "the actors are behind",
            f"{e.waiting.unsampled} groups wait for samples, the learner for {waits:.0f} s; {tokens:,.0f} tokens/s",
            "start more actors, or ask for less: [learner] sampling.max_new_tokens, group_size",
        )


RULES: tuple[Rule, ...] = (
    no_learner,
    server_unwell,
    no_actors,
    no_weights,
)
NOTICES: tuple[Rule, ...] = (long_waits,)
SLOW: tuple[Rule, ...] = (evictions, learner_busy, slow_partition)
