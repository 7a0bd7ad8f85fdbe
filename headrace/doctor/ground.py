"""Checks what every daemon relies on: the log, the disk, living processes, one version and one clock."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.doctor.evidence import Evidence
from headrace.doctor.finding import RECENT_SECONDS, Finding, Rule, command
from headrace.running.supervisor import HEALTHY_SECONDS
from monitoring.metrics import RunMetrics
from monitoring.processes import STOPPED

RESTARTS = 3  # so many ends of one daemon make a crash loop
FULL_SHARE, FULL_BYTES = 0.02, 500e6
CLOCK_SECONDS = 2.0


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
    """The count is of the supervisor's whole life: what has since lived for a while has got over it."""
    lived = {d.entry.name: e.now - d.entry.started for d in e.daemons}
    for supervisor in e.of("supervisor"):
        for name, count in supervisor.labelled(str(RunMetrics.restarts), "daemon").items():
            seconds = lived.get(name)
            if count < RESTARTS or (seconds is not None and seconds > RECENT_SECONDS):
                continue
            since = "" if seconds is None else f", the last {seconds:.0f} s ago"
            yield Finding(
                f"{name} ends again and again",
                f"{count:.0f} restarts{since}; last words: {e.words.get(name, 'none')}",
                f"see {e.run.directory / 'logs' / name}.out; a rewarder may be corrected in its file while the run goes on",
                seconds is None or seconds <= HEALTHY_SECONDS,
            )


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


RULES: tuple[Rule, ...] = (
    unreachable_log,
    full_disk,
    crash_loop,
    nobody,
    hung,
)
NOTICES: tuple[Rule, ...] = (versions, clocks)
