"""What became of a run, computed from its log alone: summary.json and the report."""

from __future__ import annotations

import json
import platform
import time
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

from broker.log import Log
from broker.messages import Evaluation, Manifest, StepResult, Trajectory
from broker.run import Run
from headrace.reading.records import scan
from headrace.reading.verify import Audit
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


class History:
    """The ``steps`` topic of a run: results by step of the RL stages, evaluations, and stages' starts."""

    def __init__(self, log: Log, run: Run) -> None:
        self.manifests: list[Manifest] = []
        self.evaluations: list[Evaluation] = []
        results: dict[tuple[int, int], StepResult] = {}
        for _, message in scan(log, run.topics.steps):
            if isinstance(message, Manifest):
                self.manifests.append(message)
            elif isinstance(message, Evaluation):
                self.evaluations.append(message)
            elif isinstance(message, StepResult):
                results[message.stage, message.stage_step] = message  # after a redo the last one holds
        stages = {m.stage for m in self.manifests if m.kind == "step"}
        self.rl = [r for (stage, _), r in sorted(results.items()) if stage in stages]
        self.sft = [r for (stage, _), r in sorted(results.items()) if stage not in stages]


def summarise(log: Log, run: Run, audit: Audit, wall_seconds: float) -> dict[str, Any]:
    """The run in numbers, from its log and the audit of it."""
    history = History(log, run)
    generated = sum(m.response_tokens for _, m in scan(log, run.topics.trajectories) if isinstance(m, Trajectory))
    phases: dict[str, float] = defaultdict(float)
    for result in history.rl:
        for name, seconds in result.phases.items():
            phases[name] += seconds
    named = [e for e in history.evaluations if ":" not in e.name] or history.evaluations
    stale = [r.metrics.get("staleness_mean", 0.0) for r in history.rl]
    return {
        "run": run.table.name,
        "steps": len(history.rl),
        "wall_seconds": round(wall_seconds, 1),
        "pass_at_1": {
            "before": named[0].pass_at_1 if named else None,
            "after": named[-1].pass_at_1 if named else None,
            "k": named[-1].k if named else None,
            "questions": named[-1].questions if named else None,
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
            "generated": generated,
            "trained": int(sum(r.metrics.get("tokens_trained", 0.0) for r in history.rl)),
        },
        "staleness": {
            "mean": sum(stale) / len(stale) if stale else 0.0,
            "max": max((r.metrics.get("staleness_max", 0.0) for r in history.rl), default=0.0),
        },
        "phases": {name: round(seconds, 3) for name, seconds in sorted(phases.items())},
        "seed": run.table.seed,
        "versions": versions(),
    }
