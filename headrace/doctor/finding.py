"""A finding, and what the rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from headrace.doctor.evidence import Daemon, Evidence
from headrace.running.rundir import RUN_FILE
from monitoring.metrics import LearnerMetrics

PHASE_SINCE = str(LearnerMetrics.phase_since)
MOVING_SECONDS = 60.0
RECENT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, the evidence, and the command or setting that cures it; ``holds``: whether the run waits because of it."""

    what: str
    evidence: str
    fix: str
    holds: bool = True


Rule = Callable[[Evidence], Iterable[Finding]]


def command(e: Evidence, what: str, *more: str) -> str:
    """The command that starts ``what`` of this run, as it is shown."""
    return f"`{' '.join(['headrace', what, str(e.run.directory / RUN_FILE), *more, '--dir', str(e.run.directory)])}`"


def moving(daemon: Daemon | None, name: str) -> bool:
    """Whether a counter has risen between the two looks."""
    return daemon is not None and daemon.get(name) > daemon.before.get(name, 0.0)
