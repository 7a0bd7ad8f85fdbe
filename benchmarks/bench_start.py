"""Seconds from `headrace run` to the first sampled token, with the nursery and without it, in turn.

``python benchmarks/bench_start.py [--rounds 5]``: the tiny model with random weights, straight into reinforcement learning. The processor time is
that of all processes of the run until then.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from statistics import median
from typing import Any

import tomli_w

from broker.errors import HeadraceError
from broker.messages import Trajectory
from headrace.reading.records import scan
from headrace.running.rundir import reopen

ROOT = Path(__file__).resolve().parent.parent
WAYS = {
    "each daemon imports for itself": "import contextlib, headrace.commands.run as run\nrun.nursery = lambda: contextlib.nullcontext()\n",
    "forked": "",
}
LOOK_SECONDS, PATIENCE = 0.2, 180.0


def model_in(home: Path) -> Path:
    from learner.model.load import load_model, save_model

    tiny = str(ROOT / "recipes" / "tiny_model")
    save_model(load_model(tiny, init="random"), tiny, home / "model")
    return home / "model"


def started(way: str, model: Path, home: Path) -> tuple[float, float]:
    """Seconds until the first sample began to be drawn, and the run's processor seconds."""
    tables: dict[str, Any] = tomllib.loads((ROOT / "recipes" / "tiny.toml").read_text())
    tables["stage"] = [{"kind": "rl", "name": "zero", "steps": 1000, "eval_every": 0}]
    tables["run"]["model"] = str(model)
    tables["learner"]["sampling"]["max_new_tokens"] = 4
    (home / "run.toml").write_text(tomli_w.dumps(tables))
    code = WAYS[way] + "import sys\nfrom headrace.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "run", str(home / "run.toml"), "--dir", str(home / "run"), "--plain"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        while not (first := samples(home / "run")):
            if process.poll() is not None or time.time() - began > PATIENCE:
                raise RuntimeError(f"no sample; see {home / 'run' / 'logs'}")
            time.sleep(LOOK_SECONDS)
        process.send_signal(signal.SIGINT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return min(first) - began, sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime"))


def samples(directory: Path) -> list[float]:
    """When the samples that are in the log began."""
    if not (directory / "daemons" / "actor-0.json").exists():
        return []
    run = reopen(directory)
    try:
        log = run.open_log()
        try:
            return [t.started for _, t in scan(log, run.topics.trajectories) if isinstance(t, Trajectory)]
        finally:
            log.close()
    except HeadraceError:  # the topics are being made
        return []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as base:
        model = model_in(Path(base))
        for _ in range(rounds):
            for way in WAYS:
                with tempfile.TemporaryDirectory() as home:
                    found[way].append(started(way, model, Path(home)))
                    print(way, found[way][-1], "load", os.getloadavg()[0], file=sys.stderr, flush=True)
    print("| daemons | seconds to the first token | processor seconds of the run |\n|---|---|---|")
    for way, values in found.items():
        print(f"| {way} | {median(v[0] for v in values):.1f} | {median(v[1] for v in values):.1f} |")
    ratios = [b[0] / a[0] for a, b in zip(*found.values(), strict=True)]
    print(f"\nforked, of each by itself: {median(ratios):.2f} (medians of {rounds} rounds)")


if __name__ == "__main__":
    main()
