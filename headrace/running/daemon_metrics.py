"""Reads the daemons' own metrics: how fast each works, how busy it is, how often it was restarted."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from monitoring.daemon import Registration, registrations
from monitoring.metrics import ActorMetrics, LearnerMetrics, RewarderMetrics, RunMetrics, SystemMetrics
from monitoring.scrape import scrape
from monitoring.view import DaemonView

SCRAPE_SECONDS = 1.0  # time-out for scraping all daemons together
ANSWER_SECONDS = 0.3
WINDOW_SECONDS = 5.0  # window over which rates are computed
WORK = {
    "actor": (str(ActorMetrics.generated_tokens), "tok/s"),
    "learner": (str(LearnerMetrics.tokens), "tok/s"),
    "rewarder": (str(RewarderMetrics.results), "votes/s"),
}
"""Which counter tells how fast a daemon of a role works, and in which unit."""
ASKED = (*WORK, "supervisor")
BUSY, IDLE = str(SystemMetrics.busy_seconds), str(SystemMetrics.idle_seconds)
RESTARTS, UP = str(RunMetrics.restarts), str(RunMetrics.up)
INFLIGHT, SLOTS, VERSION = str(ActorMetrics.inflight), str(ActorMetrics.slots), str(ActorMetrics.weight_version)


@dataclass(frozen=True, slots=True)
class Look:
    """A daemon's counters at one moment (seconds since the epoch)."""

    at: float
    work: float = 0.0
    busy: float = 0.0
    idle: float = 0.0


class Pulse:
    """Scrapes the daemons of a run; before two looks there are the means since each daemon's start."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._looks: dict[tuple[str, int], deque[Look]] = {}
        self.scraped: list[tuple[Registration, dict[str, float]]] = []
        """What was scraped last."""

    def take(self, daemons: list[DaemonView], everyone: bool) -> list[DaemonView]:
        """Bring ``daemons`` up to date, and add those that their supervisor knows to be down.

        Without ``everyone`` the rewarders are not asked: there may be many.
        """
        known = {d.name: d for d in daemons}
        began = time.monotonic()
        self.scraped = []
        for found in registrations(self._directory):
            if found.role not in ASKED or (found.role == "rewarder" and not everyone):
                continue
            if time.monotonic() - began > SCRAPE_SECONDS:
                break  # daemons that do not answer must not hold up the one that looks after them
            metrics = scrape(found.metrics, ANSWER_SECONDS)
            self.scraped.append((found, metrics))
            if found.role == "supervisor":
                _supervised(metrics, known)
            elif found.name in known and metrics:
                self._read(known[found.name], found, metrics)
        return list(known.values())

    def _read(self, daemon: DaemonView, found: Registration, metrics: dict[str, float]) -> None:
        counter, daemon.unit = WORK.get(found.role, ("", ""))
        now = Look(time.time(), total(metrics, counter), total(metrics, BUSY), total(metrics, IDLE))
        looks = self._looks.setdefault((found.name, found.pid), deque())
        while looks and now.at - looks[0].at > WINDOW_SECONDS:
            looks.popleft()
        then = looks[0] if looks else Look(found.started)
        looks.append(now)
        seconds, busy, idle = now.at - then.at, now.busy - then.busy, now.idle - then.idle
        daemon.rate = (now.work - then.work) / seconds if counter and seconds > 0 else None
        daemon.busy = busy / (busy + idle) if busy + idle > 0 else None
        daemon.inflight = int(metrics[INFLIGHT]) if INFLIGHT in metrics else None
        daemon.slots = int(metrics[SLOTS]) if SLOTS in metrics else None
        daemon.version = int(metrics[VERSION]) if VERSION in metrics else None


def total(metrics: dict[str, float], name: str) -> float:
    """The sum over all labels of a metric."""
    return sum(value for key, value in metrics.items() if key.partition("{")[0] == name)


def _supervised(metrics: dict[str, float], known: dict[str, DaemonView]) -> None:
    """Restarts, and who is down, as the supervisor's metrics have them."""
    for key, value in metrics.items():
        metric, _, labels = key.partition("{")
        name, found, role = labels.removesuffix("}").removeprefix("daemon=").partition(",role=")
        if not found:
            continue
        if metric == UP and not value and name not in known:
            known[name] = DaemonView(name, role, 0, "gone")
        elif metric == RESTARTS and name in known:
            known[name].restarts = int(value)
