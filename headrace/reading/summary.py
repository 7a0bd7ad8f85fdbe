"""Makes summary.json: the results of a run in numbers, from its log and from the clock that runs beside it."""

from __future__ import annotations

import json
import platform
import time
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

from broker.log import Log
from broker.run import Run
from headrace.reading.audit import Audit
from headrace.reading.history import History
from headrace.reading.origin import origin_of
from headrace.reading.sampled import generated_tokens
from monitoring.files import replace

PACKAGES = ("headrace", "torch", "transformers", "numpy", "pyzmq", "msgpack", "math-verify")
CLOCK = "seconds.json"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


class WallClock:
    """The wall time of a run over all its sittings, kept in its directory; what a killed one leaves is a few seconds old."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / CLOCK
        self._before = self._read()
        self._started = self._kept = time.monotonic()
        self.running = False

    def _read(self) -> float:
        try:
            return float(json.loads(self._path.read_text())["seconds"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0.0

    def start(self) -> WallClock:
        self._started, self.running = time.monotonic(), True
        return self

    @property
    def seconds(self) -> float:
        return self._before + (time.monotonic() - self._started if self.running else 0.0)

    def keep(self, every: float = 0.0) -> None:
        """Write the time down, unless that was done less than ``every`` seconds ago."""
        if time.monotonic() - self._kept >= every:
            self._kept = time.monotonic()
            replace(self._path, json.dumps({"seconds": round(self.seconds, 3)}))


def summarise(log: Log, run: Run, audit: Audit, wall_seconds: float) -> dict[str, Any]:
    """The run in numbers, from its log and the audit of it."""
    history = History.of(log, run.topics)
    results, evaluations = history.results(reinforced=True), history.evaluations()
    phases: dict[str, float] = defaultdict(float)
    for result in results:
        for name, seconds in result.phases.items():
            phases[name] += seconds
    named = [e for e in evaluations if ":" not in e.name] or evaluations
    stale = [r.metrics.get("staleness_mean", 0.0) for r in results]
    origin = origin_of(log, run.topics)
    return {
        "run": run.table.name,
        **({"forked_from": {"run": origin.run, "step": origin.step, "directory": origin.where}} if origin else {}),
        "steps": len(results),
        "wall_seconds": round(wall_seconds, 1),
        "pass_at_1": {
            "before": named[0].pass_at_1 if named and named[0].questions else None,
            "after": named[-1].pass_at_1 if named and named[-1].questions else None,
            "k": named[-1].k if named else None,
            "questions": named[-1].questions if named else None,
            "judged_share": round(named[-1].judged_share, 4) if named else None,
        },
        "groups": {
            "fed": audit.fed,
            "trained": audit.trained,
            "dropped": audit.dropped,
            "dead_lettered": audit.dead_lettered,
            "evaluated": audit.evaluated,
            "outstanding": audit.outstanding,
        },
        "dropped": audit.dropped_by_reason,
        "tokens": {
            "generated": generated_tokens(log, run.topics),
            "trained": int(sum(r.metrics.get("tokens_trained", 0.0) for r in results)),
        },
        "staleness": {
            "mean": sum(stale) / len(stale) if stale else 0.0,
            "max": max((r.metrics.get("staleness_max", 0.0) for r in results), default=0.0),
        },
        "phases": {name: round(seconds, 3) for name, seconds in sorted(phases.items())},
        "seed": run.table.seed,
        "versions": versions(),
    }
