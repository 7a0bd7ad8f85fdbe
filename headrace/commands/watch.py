"""``headrace watch RUN ...``: run Prometheus on the daemons of one or several runs, and print alerts as they change.

It only observes: runs may start, end and start again meanwhile, and are not affected.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.errors import RunFault, RunFileError
from broker.run import Run
from headrace.running.rundir import find_run
from monitoring.daemon import Stop, registrations
from monitoring.discovery import TARGETS, write_targets
from monitoring.metrics import ActorMetrics, LearnerMetrics, RunMetrics
from monitoring.prometheus import ALERTS, Prometheus, PrometheusError, programs
from monitoring.view import clean_text

TARGETS_SECONDS = (
    5.0  # interval of writing targets.json for a run whose daemons were started by hand: it has no supervisor to do it
)
LOOK_SECONDS = 1.0
QUERIES = {
    "tokens generated a second": f"sum by (run) (rate({ActorMetrics.generated_tokens}[1m]))",
    "seconds a step usually takes": str(LearnerMetrics.usual_step),
    "share of its time that the learner waits": "headrace:learner_wait_data:share5m",
    "staleness, 95th percentile": "headrace:staleness_versions:p95",
    "records behind": f"sum by (run, group, topic) ({RunMetrics.lag})",
    "reward": str(LearnerMetrics.reward_mean),
    "held-out pass@1": str(LearnerMetrics.pass_at_1),
}


@dataclass(frozen=True, slots=True)
class Watched:
    """A watched run: its alerting rules, and the ``others`` that its run file has scraped (addresses by name)."""

    name: str
    directory: Path
    rules: Path
    others: Mapping[str, str]

    def write_targets(self) -> Path:
        """Update ``targets.json``, unless a live supervisor does that already; returns its path."""
        path = self.directory / TARGETS
        if path.exists() and any(d.role == "supervisor" for d in registrations(self.directory)):
            return path
        return write_targets(self.name, self.directory, self.others)


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="its directory, or the run file that starts it")
    sub.add_argument("--port", type=int, default=9090, help="where Prometheus listens on the loopback; 0: any free one")
    sub.add_argument(
        "--dir", dest="directory", type=Path, default=None, metavar="DIR", help="its data; default: RUN/prometheus"
    )
    sub.add_argument("--interval", type=int, default=5, metavar="SECONDS", help="between two looks at each daemon")


def main(options: argparse.Namespace) -> int:
    """Watch until Ctrl-C or SIGTERM. Raises RunFileError for bad input, RunFault if Prometheus is missing or ends."""
    if options.interval < 1:
        raise RunFileError(f"--interval {options.interval}: use at least 1 (seconds)")
    runs = watched_runs(options.runs)
    stop, home = Stop().install(), options.directory or runs[0].directory / "prometheus"
    rules = sorted({run.rules for run in runs})
    try:
        check_rules(rules)
        files = [run.write_targets() for run in runs]
        server = Prometheus(home, files, rules, f"{options.interval}s", options.port)
        try:
            for line in opening(server.url, runs, rules, home):
                print(line, flush=True)
            follow(server, runs, stop)
        finally:
            server.stop()
    except PrometheusError as error:
        raise RunFault(" ".join(str(error).split())) from error
    return 0


def watched_runs(places: Sequence[Path]) -> list[Watched]:
    """The runs at ``places``. Raises RunFileError if one has no run, or if two different runs have the same name."""
    runs: dict[str, Watched] = {}
    for place in places:
        run = watched(place)
        other = runs.setdefault(run.name, run)
        if other.directory != run.directory:
            raise RunFileError(
                f"{other.directory} and {run.directory} are both runs of the name {run.name!r}; watch them apart"
            )
    return list(runs.values())


def watched(place: Path) -> Watched:
    """The run in directory ``place``, or the run that the run file ``place`` starts, even if it has not begun. Raises
    RunFileError.
    """
    try:
        run = find_run(place)
    except RunFileError:
        if not place.is_file():
            raise
        run = Run.open(place)
    named = run.monitoring.alerts
    rules = run.file.resolve(named) if named else ALERTS
    if not rules.is_file():
        raise RunFileError(f"[monitoring] alerts = {named!r}: there is no file {rules}")
    return Watched(run.table.name, run.directory, rules, run.monitoring.targets)


def check_rules(rules: Iterable[Path]) -> None:
    """Check alerting rules with promtool. Raises RunFileError with its message."""
    for path in rules:
        done = subprocess.run([programs() / "promtool", "check", "rules", path], capture_output=True, text=True)
        if done.returncode:
            words = clean_text(" ".join((done.stdout + done.stderr).split()), 600)
            raise RunFileError(f"[monitoring] alerts: {words}")


def opening(url: str, runs: Sequence[Watched], rules: Sequence[Path], home: Path) -> list[str]:
    """Lines to print at the start: Prometheus's address, the runs, and useful first queries."""
    width = max(len(what) for what in QUERIES)
    return [
        f"headrace: Prometheus at {url} watches {', '.join(run.name for run in runs)}",
        *(f"  alerts   {path}" for path in rules),
        f"  data     {home}",
        f"  ask it   at {url}/graph, for example",
        *(f"    {what:{width}}  {query}" for what, query in QUERIES.items()),
        "  Ctrl-C ends it, and no run.",
    ]


def follow(server: Prometheus, runs: Sequence[Watched], stop: Stop) -> None:
    """Keep the targets up to date and print alerts until ``stop``. Raises PrometheusError if the server ends."""
    alerts, due = Alerts(), 0.0
    while not stop.wait(LOOK_SECONDS):
        if time.monotonic() >= due:
            due = time.monotonic() + TARGETS_SECONDS
            for run in runs:
                run.write_targets()
        try:
            found = server.get("alerts")["alerts"]
        except PrometheusError as error:
            if server.alive:  # it is busy: try again at the next look
                continue
            if stop.wait(LOOK_SECONDS):  # Ctrl-C ends both it and us
                return
            raise PrometheusError(f"Prometheus has ended: {error}") from error
        for line in alerts.look(found, time.time()):
            print(line, flush=True)


class Alerts:
    """Tracks which alerts are firing, from one look to the next."""

    def __init__(self) -> None:
        self._firing: dict[frozenset[tuple[str, str]], tuple[str, float]] = {}

    def look(self, found: Iterable[Mapping[str, Any]], now: float) -> list[str]:
        """A line for each alert that started firing or stopped. ``found`` is Prometheus's list; ``now`` is in seconds
        since the epoch.
        """
        firing = {frozenset(a["labels"].items()): a for a in found if a["state"] == "firing"}
        lines = []
        for key, alert in firing.items():
            if key not in self._firing:
                self._firing[key] = title(alert["labels"]), now
                lines.append(f"{clock(now)} ALERT {title(alert['labels'])}: {words(alert['annotations'])}")
        for key in [k for k in self._firing if k not in firing]:
            name, since = self._firing.pop(key)
            lines.append(f"{clock(now)} over  {name}, after {now - since:.0f} s")
        return lines


def title(labels: Mapping[str, str]) -> str:
    """An alert's name, severity and other labels, which tell one alert from another."""
    shown = [f"{k}={v}" for k, v in sorted(labels.items()) if k not in ("alertname", "severity")]
    return clean_text(" ".join([f"{labels['alertname']} [{labels.get('severity', 'none')}]", *shown]), 300)


def words(annotations: Mapping[str, str]) -> str:
    """The rule's summary and description, and its runbook."""
    said = [annotations[name] for name in ("summary", "description") if annotations.get(name)]
    where = [f"({annotations['runbook']})"] if annotations.get("runbook") else []
    return clean_text(" ".join((". ".join(text.rstrip(".") for text in said) + ".", *where)).replace("\n", " "), 1000)


def clock(now: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(now))
