"""Runs the ring of ``benchmarks/ring.toml`` and measures it between two of its steps, from the outside: log, metrics, CPU times."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from broker.messages import StepResult
from headrace.reading.records import read
from headrace.running.rundir import RUN_FILE, reopen
from monitoring.daemon import registrations
from monitoring.scrape import scrape

HERE = Path(__file__).resolve().parent
WARM_UP = 6  # steps before the first that counts
PATIENCE = 600.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds a step, the share of the time that each role works, and seconds a step by phase of the learner."""

    step_seconds: float
    busy: dict[str, float]
    phases: dict[str, float]
    cpu_seconds: float
    staleness: float
    tokens: float


def measure(directory: Path, settings: Sequence[str] = (), median: float = 0.0, p99: float = 0.0) -> Measured:
    """Run it in ``directory`` with ``settings`` (``--set``) and judgements of that latency in seconds."""
    directory.mkdir(parents=True)
    options = [part for s in settings for part in ("--set", s)]
    command = [
        sys.executable,
        "-m",
        "headrace",
        "run",
        str(HERE / "ring.toml"),
        "--plain",
        "--dir",
        str(directory),
        *options,
    ]
    with (directory / "out").open("wb") as out:
        run = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    judge = None
    try:
        while not (directory / RUN_FILE).exists():
            time.sleep(0.1)
        time.sleep(1.0)
        judge = subprocess.Popen(
            [sys.executable, str(HERE / "judge.py"), str(directory), "--median", str(median), "--p99", str(p99)],
            cwd=HERE.parent, env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        )  # fmt: skip
        found = _follow(directory, run)
        assert run.wait(60) == 0, (directory / "out").read_text()[-2000:]
        return found
    finally:
        for process in (run, judge):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(30)


def _follow(directory: Path, run: subprocess.Popen[bytes]) -> Measured:
    opened = reopen(directory)
    log = opened.open_log()
    reader = log.reader(opened.topics.steps)
    results: list[StepResult] = []
    first: tuple[float, dict[str, float]] | None = None
    last: tuple[float, dict[str, float]] | None = None
    deadline = time.monotonic() + PATIENCE
    total = int(opened.file.tables["stage"][1]["steps"])
    while last is None:
        assert time.monotonic() < deadline and run.poll() is None, (directory / "out").read_text()[-2000:]
        for record in reader.poll(64, 0.05):
            message = read(record)
            if isinstance(message, StepResult) and message.stage == 1:
                results.append(message)
        if first is None and len(results) >= WARM_UP:
            first, begun = _counters(directory, run), len(results)
        if len(results) >= total - 3:
            last, ended = _counters(directory, run), len(results)
    log.close()
    assert first is not None
    counted = results[begun:ended]
    wall = last[0] - first[0]
    gone = {name: last[1][name] - first[1].get(name, 0.0) for name in last[1]}
    busy = {role: 1 - gone[f"idle/{role}"] / wall for role in ("learner", "actor")}
    phases: dict[str, float] = {}
    for result in counted:
        for name, seconds in result.phases.items():
            phases[name] = phases.get(name, 0.0) + seconds / len(counted)
    mean = [r.metrics["staleness_mean"] for r in counted]
    tokens = sum(r.metrics["tokens_trained"] for r in counted) / len(counted)
    seconds = (counted[-1].created - results[begun - 1].created) / len(counted)
    return Measured(seconds, busy, phases, gone["cpu"] / len(counted), sum(mean) / len(mean), tokens)


def _counters(directory: Path, run: subprocess.Popen[bytes]) -> tuple[float, dict[str, float]]:
    """Now, idle seconds by role, and CPU seconds of all processes of the run."""
    out = {"idle/learner": 0.0, "idle/actor": 0.0, "cpu": 0.0}
    now = time.monotonic()
    for daemon in registrations(directory):
        for name, value in scrape(daemon.metrics, 5.0).items():
            if name.startswith("headrace_idle_seconds_total") and daemon.role in ("learner", "actor"):
                out[f"idle/{daemon.role}"] += value
    for process in psutil.Process(run.pid).children(recursive=True):
        times = process.cpu_times()
        out["cpu"] += times.user + times.system
    return now, out
