"""One look at a run, taken for its diagnosis: its daemons' metrics twice, the log's groups twice, the newest steps, the disk.

Reading disturbs nobody: it joins no consumer group and writes nothing.
"""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.errors import HeadraceError
from broker.log import Log
from broker.messages import DeadLetter, StepResult
from broker.run import Run
from headrace.doctor.waiting import Waiting, waiting_groups
from headrace.reading.history import History
from headrace.reading.records import newest
from headrace.running.groups import groups_in_force
from headrace.running.runfile import WholeRun
from monitoring.daemon import Registration, registrations
from monitoring.metrics import SystemMetrics
from monitoring.processes import state_of
from monitoring.scrape import scrape

BETWEEN_SECONDS = 2.0  # time between the two samples that show what moves
SCRAPE_SECONDS = 2.0
RECENT = 400  # number of records of the steps topic to read
LETTERS = 50  # number of dead letters to read
TAIL_BYTES = 1 << 14

Lags = Mapping[tuple[str, str], Mapping[int, int]]
"""Records that a group has yet to commit, by (group, topic) and partition."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """One living daemon: ``before`` and ``now`` are its metrics (empty: it does not answer), ``state`` its process's letter in /proc.

    ``clock`` is how many seconds its clock is ahead of ours, as far as that can be told.
    """

    entry: Registration
    before: Mapping[str, float]
    now: Mapping[str, float]
    state: str
    clock: float = 0.0
    healthy: bool = True

    def get(self, name: str) -> float:
        """The metric's value now; 0 where it is absent."""
        return self.now.get(name, 0.0)

    def labelled(self, name: str, label: str) -> dict[str, float]:
        """Values of metric ``name`` by the value of its ``label``."""
        found = {}
        for key, value in self.now.items():
            base, _, labels = key.rstrip("}").partition("{")
            pairs = dict(pair.split("=", 1) for pair in labels.split(",") if "=" in pair)
            if base == name and label in pairs:
                found[pairs[label]] = value
        return found


@dataclass(slots=True)
class Evidence:
    """Everything that the rules look at."""

    run: Run
    whole: WholeRun
    daemons: list[Daemon] = field(default_factory=list)
    log_error: str = ""
    lags: Lags = field(default_factory=dict)
    earlier_lags: Lags = field(default_factory=dict)
    steps: list[StepResult] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    waiting: Waiting = field(default_factory=Waiting)
    disk_free: int = 0
    disk_total: int = 1
    words: dict[str, str] = field(default_factory=dict)
    """The last fault that each daemon of the run has told."""
    pages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each rewarder's daemon says of itself on its page."""
    aside: dict[int, str] = field(default_factory=dict)
    """Of the newest steps those that could not be executed, with the reason."""
    now: float = 0.0

    def of(self, role: str) -> list[Daemon]:
        return [d for d in self.daemons if d.entry.role == role]

    @property
    def learner(self) -> Daemon | None:
        return next(iter(self.of("learner")), None)

    def of_learner(self, name: str, label: str) -> dict[str, float]:
        """Values of the learner's metric ``name`` by the value of its ``label``; none without a learner."""
        return self.learner.labelled(name, label) if self.learner else {}

    def lag(self, group: str, topic: str) -> int:
        """What ``group`` has yet to commit; a group that never joined has everything before it, which is not counted here."""
        return sum(self.lags.get((group, topic), {}).values())


def gather(run: Run, whole: WholeRun) -> Evidence:
    """Look twice, a moment apart."""
    evidence = Evidence(run, whole)
    living = registrations(run.directory)
    before = {d.name: _scrape(d) for d in living}
    log: Log | None = None
    try:
        log = run.open_log()
        evidence.earlier_lags = _lags(run, log)
    except HeadraceError as error:
        evidence.log_error = str(error)
    time.sleep(BETWEEN_SECONDS)
    evidence.daemons = [_daemon(d, before[d.name]) for d in living]
    evidence.pages = {d.name: _page(d) for d in living if d.role == "rewarder"}
    if log is not None:
        with closing(log):
            try:
                _read(evidence, log)
            except HeadraceError as error:
                evidence.log_error = str(error)
    disk = shutil.disk_usage(run.directory)
    evidence.disk_free, evidence.disk_total = disk.free, disk.total
    evidence.words = _words(run.directory / "logs")
    evidence.now = time.time()
    return evidence


def _read(evidence: Evidence, log: Log) -> None:
    topics = evidence.run.topics
    evidence.lags = _lags(evidence.run, log)
    history = History.recent(log, topics, RECENT)
    evidence.aside = dict(history.aside)
    evidence.steps = [done.result for done in history.executions()]
    evidence.letters = [m for _, m in newest(log, topics.deadletters, LETTERS) if isinstance(m, DeadLetter)]
    evidence.waiting = waiting_groups(log, topics, history)


def _lags(run: Run, log: Log) -> dict[tuple[str, str], dict[int, int]]:
    found = {}
    for group, topics in groups_in_force(run, log).items():
        for topic in topics:
            begins, ends, done = log.begins(topic), log.ends(topic), log.committed(group, topic)
            found[group, topic] = {p: max(0, end - done.get(p, begins.get(p, 0))) for p, end in ends.items()}
    return found


def _scrape(entry: Registration) -> dict[str, float]:
    return scrape(entry.metrics, SCRAPE_SECONDS) if entry.role != "sglang" else {}


def _daemon(entry: Registration, before: Mapping[str, float]) -> Daemon:
    asked = time.time()
    now = _scrape(entry)
    answered = time.time()
    told = now.get(str(SystemMetrics.clock), asked)
    clock = told - answered if told > answered else min(0.0, told - asked)
    healthy = entry.role != "sglang" or _healthy(entry.metrics)
    return Daemon(entry, before, now, state_of(entry.pid), clock, healthy)


def _page(entry: Registration) -> dict[str, Any]:
    """A rewarder's page; empty where it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{entry.metrics}/rewarder", timeout=SCRAPE_SECONDS) as answer:
            found = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _healthy(url: str) -> bool:
    """Whether a server says that it is well."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=SCRAPE_SECONDS) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _words(logs: Path) -> dict[str, str]:
    """The last fault, or else the last line, of each daemon's output."""
    found = {}
    for path in sorted(logs.glob("*.out")):
        with suppress(OSError), path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
            faults = [line.removeprefix("fault: ") for line in lines if line.startswith("fault: ")]
            if faults or lines:
                found[path.stem] = (faults or lines)[-1]
    return found
