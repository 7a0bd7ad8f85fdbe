"""Observes a run from outside its daemons: which are alive, how far each group is behind, how full the disk is, where
to scrape.

Its metrics and ``/targets`` (Prometheus's HTTP service discovery) are served like a daemon's; ``RUN/targets.json`` says
the same.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack

from prometheus_client import CollectorRegistry

from broker.errors import HeadraceError
from broker.log import Log
from broker.run import Run, announced
from headrace.running.groups import groups_in_force
from monitoring.daemon import registrations
from monitoring.discovery import targets_text, write_targets
from monitoring.metrics import RunMetrics
from monitoring.view import DaemonView

LOG_SECONDS = 5.0  # interval at which the log is read: it may be across a network


class Watcher:
    """Looks whenever ``look`` is called, about once a second; it holds no place in any consumer group."""

    def __init__(self, run: Run) -> None:
        self._run, self._stack = run, ExitStack()
        registry = CollectorRegistry()
        self._metrics = RunMetrics(registry)
        self._log: Log | None = None
        self._looked = 0.0
        self._restarts: dict[str, int] = {}
        self._known: set[tuple[str, str]] = set()  # name and role of all that were ever seen
        self._supervised: set[tuple[str, str]] = set()
        self._lagging: set[tuple[str, str]] = set()  # group and topic of the lags that are served
        pages = {"/targets": lambda: targets_text(run.table.name, run.directory, run.monitoring.targets)}
        self._stack.enter_context(announced(run, "supervisor", "supervisor", registry, pages))

    def look(self, daemons: Sequence[DaemonView], stage: int) -> None:
        """Bring the metrics and the list of targets up to date."""
        self._alive(daemons)
        self._metrics.stage.set(stage)
        disk = shutil.disk_usage(self._run.directory)
        self._metrics.disk_free.set(disk.free)
        self._metrics.disk_size.set(disk.total)
        self._write_targets()
        if time.monotonic() - self._looked >= LOG_SECONDS:
            self._looked = time.monotonic()
            try:
                self._look_at_log()
            except HeadraceError:  # it is away, as the daemons say themselves; the next look opens it anew
                self._close_log()

    def _alive(self, daemons: Sequence[DaemonView]) -> None:
        """Those that are supervised here, and those that were started elsewhere and have announced themselves."""
        supervised = {(d.name, d.role): d.state == "running" for d in daemons}
        up = {(d.name, d.role): True for d in registrations(self._run.directory)} | supervised
        for name, role in self._supervised - up.keys():  # the run file names it no more
            self._known.discard((name, role))
            self._metrics.up.remove(name, role)
        self._supervised = set(supervised)
        self._known |= up.keys()
        for name, role in self._known:
            self._metrics.up(name, role).set(up.get((name, role), False))
        for daemon in daemons:
            more = daemon.restarts - self._restarts.get(daemon.name, 0)
            self._metrics.restarts(daemon.name, daemon.role).inc(more)
        self._restarts = {daemon.name: daemon.restarts for daemon in daemons}  # one that comes back begins at 0

    def _look_at_log(self) -> None:
        self._log = self._log or self._run.open_log()
        topics = self._run.topics
        lags = {
            (g, t): self._log.lag(g, t) for g, names in groups_in_force(self._run, self._log).items() for t in names
        }
        for (group, topic), lag in lags.items():
            self._metrics.lag(group, topic).set(lag)
        for group, topic in self._lagging - lags.keys():
            self._metrics.lag.remove(group, topic)
        self._lagging = set(lags)
        begins, ends = self._log.begins(topics.deadletters), self._log.ends(topics.deadletters)
        self._metrics.dead_letters.set(sum(ends[p] - begins.get(p, 0) for p in ends))

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def close(self) -> None:
        self._close_log()
        self._stack.close()
        self._write_targets()

    def _write_targets(self) -> None:
        write_targets(self._run.table.name, self._run.directory, self._run.monitoring.targets)
