"""Time per step and time to held-out .85 of recipes/tiny.toml's reinforcement learning, beside TRL's GRPOTrainer from the same base.

python benchmarks/tiny_rl.py BASE (a checkpoint of the recipe's first stage). `make bench-trl` sets up both sides and calls it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from statistics import median
from typing import Any

import tomli_w

from broker.messages import Evaluation, StepResult
from headrace.reading.records import scan
from headrace.running.rundir import reopen

ROOT = Path(__file__).resolve().parent.parent
GOAL = 0.85
STEPS = 38


def headrace(base: str, home: Path) -> dict[str, float]:
    """The ring from ``base``: evaluations run in it, and their time counts."""
    tables: dict[str, Any] = tomllib.loads((ROOT / "recipes" / "tiny.toml").read_text())
    (rl,) = [stage for stage in tables["stage"] if stage["kind"] == "rl"]
    tables["stage"] = [{**rl, "steps": STEPS, "eval_every": 5, "until_pass_at_1": 0.0}]
    tables["run"]["model"] = str(Path(base).resolve())
    (home / "tiny.toml").write_text(tomli_w.dumps(tables))
    command = [sys.executable, "-m", "headrace", "run", str(home / "tiny.toml"), "--dir", str(home / "run"), "--plain"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    run = reopen(home / "run")
    log = run.open_log()
    found = [m for _, m in scan(log, run.topics.steps)]
    log.close()
    steps = [m for m in found if isinstance(m, StepResult)]
    start = steps[0].created - steps[0].metrics["step_seconds"]
    reached = [m.created - start for m in found if isinstance(m, Evaluation) and m.pass_at_1 >= GOAL]
    seconds = [s.metrics["step_seconds"] for s in steps]
    return {"step": median(seconds), "early": median(seconds[:15]), "goal": min(reached, default=float("nan"))}


def trl(base: str) -> dict[str, float]:
    """TRL's trainer; its evaluations stand outside of the clock."""
    command = [
        str(ROOT / ".venv" / "trl" / "bin" / "python"),
        str(ROOT / "benchmarks" / "trl" / "grpo.py"),
        base,
        "--steps",
        str(STEPS),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"step"')]
    reached = [line["seconds"] for line in lines if line.get("pass_at_1", 0.0) >= GOAL]
    seconds = [line["step_seconds"] for line in lines]
    return {"step": median(seconds), "early": median(seconds[:15]), "goal": min(reached, default=float("nan"))}


def main(base: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        ours = headrace(base, Path(home))
    theirs = trl(base)
    print(f"256 samples a step, {STEPS} steps, two cores.\n")
    print("| | headrace | TRL GRPOTrainer | ratio |\n|---|---|---|---|")
    for name, key in (
        ("seconds a step, median of the first 15", "early"),
        ("seconds a step, median of all", "step"),
        (f"seconds to held-out {GOAL}", "goal"),
    ):
        print(f"| {name} | {ours[key]:.2f} | {theirs[key]:.2f} | {theirs[key] / ours[key]:.2f} |")


if __name__ == "__main__":
    main(sys.argv[1])
