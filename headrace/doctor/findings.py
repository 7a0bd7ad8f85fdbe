"""What may hold a run up: one rule each, from evidence to findings, the deepest cause first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean

from broker.messages import StepResult
from headrace.doctor.evidence import BETWEEN_SECONDS, Daemon, Evidence
from headrace.running.rundir import RUN_FILE
from monitoring.metrics import ActorMetrics, LearnerMetrics, RewarderMetrics, RunMetrics
from monitoring.processes import STOPPED

RESTARTS = 3  # ends of one daemon that make a loop
BACKLOG = 16  # records that one partition may hold without being called slow
GENERATED, PHASE_SINCE = str(ActorMetrics.generated_tokens), str(LearnerMetrics.phase_since)
ONE_PARTITION = 0.8  # share of a group's backlog that lies in one partition
FULL_SHARE, FULL_BYTES = 0.02, 500e6
PHASE_SECONDS = 10.0
EVICTIONS = 3
FLAT, FLAT_STEPS = 0.9, 3
CLOCK_SECONDS = 2.0
MOVING_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What it is, what shows it, and the command or setting that cures it; ``holds``: whether the run waits for it."""

    what: str
    evidence: str
    fix: str
    holds: bool = True


Rule = Callable[[Evidence], Iterable[Finding]]


def unreachable_log(e: Evidence) -> Iterator[Finding]:
    if e.log_error:
        fix = "mend what the evidence names, or correct [broker] url; the daemons wait for it and go on by themselves"
        if e.run.url.startswith("kafka://"):
            fix = f"is Kafka up at {e.run.url}? (`headrace kafka` starts one here); the daemons wait for it and go on"
        yield Finding("the log cannot be reached", f"{e.run.url}: {e.log_error}", fix)


def full_disk(e: Evidence) -> Iterator[Finding]:
    free = f"{e.disk_free / 1e9:.2f} GB free of {e.disk_total / 1e9:.0f} GB at {e.run.directory}"
    fix = (
        f"free some space (`headrace broker trim {e.run.directory}` drops what nobody needs), then start the run again"
    )
    full = [f"{name}: {text}" for name, text in e.words.items() if "no space" in text or "disk is full" in text]
    refused = [d.entry.name for d in e.daemons if any("reason=LogFull" in name for name in d.now)]
    if e.disk_free < FULL_SHARE * e.disk_total or e.disk_free < FULL_BYTES:
        yield Finding("the disk is full", free, fix)
    elif refused:
        yield Finding("the log is full", f"appends of {', '.join(refused)} were refused; {free}", fix)
    elif full and not e.daemons:
        yield Finding("the disk was full", f"{full[-1]}; now {free}", fix)


def crash_loop(e: Evidence) -> Iterator[Finding]:
    for supervisor in e.of("supervisor"):
        for name, count in supervisor.labelled(str(RunMetrics.restarts), "daemon").items():
            if count >= RESTARTS:
                yield Finding(
                    f"{name} ends again and again",
                    f"{count:.0f} restarts; last words: {e.words.get(name, 'none')}",
                    f"see {e.run.directory / 'logs' / name}.out; a rewarder may be corrected in its file while the run goes on",
                )


def command(e: Evidence, what: str, *more: str) -> str:
    """The command that starts ``what`` of this run, as it is shown."""
    return f"`{' '.join(['headrace', what, str(e.run.directory / RUN_FILE), *more, '--dir', str(e.run.directory)])}`"


def nobody(e: Evidence) -> Iterator[Finding]:
    if e.daemons:
        return
    start = f"{command(e, 'run')} goes on from where it was"
    if (e.run.directory / "finished").exists():
        yield Finding("the run is finished", f"{e.run.directory / 'finished'} is there", "nothing; see report.html")
        return
    if "supervisor" in e.words:
        cure = f"mend that, then {start}"
        yield Finding("the run was given up, and no daemon of it lives", e.words["supervisor"], cure)
        return
    last = sorted(f"{name}: {text}" for name, text in e.words.items())
    yield Finding("no daemon of this run lives", "; ".join(last) or "there are no logs: it was never started", start)


def hung(e: Evidence) -> Iterator[Finding]:
    for daemon in e.daemons:
        name, pid = daemon.entry.name, daemon.entry.pid
        if daemon.state == STOPPED:
            yield Finding(f"{name} is stopped", f"process {pid} is in state {STOPPED}", f"`kill -CONT {pid}`")
        elif not daemon.now and daemon.entry.role != "sglang":
            where = f"{daemon.entry.metrics} gives no answer, process {pid} lives"
            yield Finding(
                f"{name} does not answer", where, f"see its log; `kill -9 {pid}` loses nothing, it is started again"
            )


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


def slow_partition(e: Evidence) -> Iterator[Finding]:
    for (group, topic), lags in e.lags.items():
        total = sum(lags.values())
        worst, most = max(lags.items(), key=lambda item: item[1], default=(0, 0))
        before = e.earlier_lags.get((group, topic), {}).get(worst, 0)
        if len(lags) > 1 and most >= BACKLOG and most >= ONE_PARTITION * total and most >= before:
            yield Finding(
                f"partition {worst} of {topic} is slow for {group}",
                f"{most} of {total} open records lie in it, and they do not get fewer",
                "its member hangs on one record or is short of time: see that worker's log, or end it, others take its place",
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


def slow_actors(e: Evidence) -> Iterator[Finding]:
    """The learner waits, and it is samples that it waits for."""
    since = e.of_learner(PHASE_SINCE, "phase").get("wait_data", 0.0)
    waits = e.now - since if since else 0.0
    if waits >= MOVING_SECONDS and e.waiting.unsampled >= e.whole.learner.learner.groups_per_step and e.of("actor"):
        tokens = sum(d.get(GENERATED) - d.before.get(GENERATED, 0.0) for d in e.of("actor")) / BETWEEN_SECONDS
        yield Finding(
            "the actors are behind",
            f"{e.waiting.unsampled} groups wait for samples, the learner for {waits:.0f} s; {tokens:,.0f} tokens/s",
            "start more actors, or ask for less: [learner] sampling.max_new_tokens, group_size",
        )


def credits_gone(e: Evidence) -> Iterator[Finding]:
    """Credits are always lent out; it is a fault when the learner has waited for long meanwhile."""
    learner, since = e.learner, e.of_learner(PHASE_SINCE, "phase").get("wait_data", 0.0)
    if learner is None or not since or e.now - since < PHASE_SECONDS or not e.waiting.oldest:
        return
    if not 0 < learner.get(str(LearnerMetrics.credits)) <= e.waiting.groups:
        return
    parts = [f"{e.waiting.unsampled} lack samples"] if e.waiting.unsampled else []
    parts += [f"{count} lack votes of {name!r}" for name, count in e.waiting.unjudged.items()]
    fed, oldest = min(e.waiting.oldest.values())
    yield Finding(
        "all credits are held by incomplete groups",
        f"{e.waiting.groups} groups for {learner.get(str(LearnerMetrics.credits)):.0f} credits: {', '.join(parts)}; "
        f"the oldest, {oldest}, was fed {e.now - fed:.0f} s ago",
        "see what they lack above; a group is dropped [learner] deadline seconds after it was fed",
    )


def learner_busy(e: Evidence) -> Iterator[Finding]:
    for phase, since in e.of_learner(PHASE_SINCE, "phase").items():
        if since and phase != "wait_data" and e.now - since > PHASE_SECONDS:
            fix = {
                "checkpoint": "a slow file system below RUN/checkpoints? raise [learner] checkpoint_every",
                "publish": "the publisher has not taken the version before yet: see evictions, [learner] push_timeout, lane",
            }.get(phase, "the learner works: nothing waits but on it")
            yield Finding(f"the learner is in {phase}", f"for {e.now - since:.0f} s", fix)


def evictions(e: Evidence) -> Iterator[Finding]:
    for member, count in e.of_learner(str(LearnerMetrics.evictions), "member").items():
        if count >= EVICTIONS:
            yield Finding(
                f"broadcasts evict {member} again and again",
                f"{count:.0f} evictions: it answers no push within {e.whole.learner.learner.push_timeout:g} s",
                f"end {member} or its machine; or give it time by [learner] push_timeout, or others peace by lane = 1",
            )


def flat_groups(e: Evidence) -> Iterator[Finding]:
    recent = [s.metrics["zero_variance_group_ratio"] for s in _rl(e) if "zero_variance_group_ratio" in s.metrics]
    recent = recent[-2 * FLAT_STEPS :]
    if len(recent) >= FLAT_STEPS and fmean(recent) >= FLAT:
        rewards = ", ".join(f"{s.metrics.get('reward_mean', 0.0):.3g}" for s in _rl(e)[-3:])
        yield Finding(
            "nearly all groups have equal rewards: there is no gradient",
            f"{fmean(recent):.0%} of the groups of the last {len(recent)} steps; mean rewards {rewards}",
            "questions too hard or too easy, or a rewarder that gives one value: `headrace trace` shows the votes; "
            "change the data, the temperature or group_size",
        )


def _rl(e: Evidence) -> list[StepResult]:
    return [step for step in e.steps if "samples" in step.metrics or "zero_variance_group_ratio" in step.metrics]


def versions(e: Evidence) -> Iterator[Finding]:
    by: dict[str, list[str]] = {}
    for daemon in e.daemons:
        by.setdefault(daemon.entry.version, []).append(daemon.entry.name)
    if len(by) > 1:
        told = "; ".join(f"{version}: {', '.join(names)}" for version, names in sorted(by.items()))
        yield Finding(
            "daemons run different versions", told, "install one version everywhere and start the others again", False
        )


def clocks(e: Evidence) -> Iterator[Finding]:
    for daemon in e.daemons:
        if abs(daemon.clock) > CLOCK_SECONDS:
            ahead = "ahead of" if daemon.clock > 0 else "behind"
            yield Finding(
                f"the clock of {daemon.entry.name} is wrong",
                f"{abs(daemon.clock):.1f} s {ahead} this machine's ({daemon.entry.host})",
                "set it (chrony, ntpd): deadlines and ages are reckoned across machines",
                False,
            )


def dead_letters(e: Evidence) -> Iterator[Finding]:
    recent = [letter for letter in e.letters if e.now - letter.created < MOVING_SECONDS * 10]
    if recent:
        yield Finding(
            f"{len(recent)} records were buried in the last {MOVING_SECONDS * 10 / 60:.0f} minutes",
            f"the last one from {recent[-1].topic}: {recent[-1].error[:200]}",
            f"`headrace broker dlq list {e.run.directory}`",
            False,
        )


RULES: tuple[Rule, ...] = (
    unreachable_log, full_disk, crash_loop, nobody, hung, no_learner, server_unwell, no_actors, no_weights, no_rewarder,
    evictions, learner_busy, slow_partition, slow_rewarder, slow_actors, credits_gone, flat_groups, versions, clocks, dead_letters,
)  # fmt: skip


def diagnose(evidence: Evidence) -> list[Finding]:
    """All findings, the deepest cause first."""
    return [finding for rule in RULES for finding in rule(evidence)]


def state_of(e: Evidence) -> str:
    """What the run does, in one line."""
    stage = e.steps[-1] if e.steps else None
    parts = [f"run {e.run.table.name!r} in {e.run.directory}"]
    if stage is not None:
        parts.append(f"stage {stage.stage}, step {stage.stage_step}, version {stage.step}")
    learner = e.learner
    if learner is not None and (last := learner.get(str(LearnerMetrics.last_step))):
        parts.append(f"last step {max(0.0, e.now - last):.0f} s ago")
    roles = [f"{len(e.of(role))} {role}s" for role in ("learner", "actor", "rewarder") if e.of(role)]
    return "; ".join([*parts, ", ".join(roles) or "no daemons"])


def moving(daemon: Daemon | None, name: str) -> bool:
    """Whether a counter has risen between the two looks."""
    return daemon is not None and daemon.get(name) > daemon.before.get(name, 0.0)
