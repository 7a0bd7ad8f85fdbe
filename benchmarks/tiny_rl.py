"""Time per step and time to held-out .85 of recipes/tiny.toml's reinforcement learning, beside TRL's GRPOTrainer from the same base.

One clock for both: it runs from the first token that is sampled (the start of processes and imports before it is shown apart), nothing is
evaluated while it runs, and the weights of every step are evaluated afterwards, on the same questions by the same engine. The ring keeps no
weights for that: its steps are replayed from the log, bit for bit.

Answers grow as the model learns, so the side that learns faster has longer steps. The time of a step is therefore also taken at a rate of
almost 0, at which both sides sample the base for all steps ("the same policy").

python benchmarks/tiny_rl.py BASE [--rounds 5] (a checkpoint of the recipe's first stage). `make bench-trl` sets up both sides and calls it.
Rounds take turns; what is printed are medians of them, and ratios within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import tomli_w
import torch

from broker.messages import StepResult, Trajectory
from headrace.reading.records import scan
from headrace.running.rundir import reopen

ROOT = Path(__file__).resolve().parent.parent
GOAL, QUESTIONS, ANSWER = 0.85, 400, 96
RATE, STILL = 1e-3, 1e-9  # the recipe's learning rate, and one that changes nothing
SETTINGS = (
    "learner.objective=async",
    "learner.max_lag=2",
)  # the product's default objective, and room for two versions
LOOK_SECONDS = 0.5  # interval at which the ring's log is looked into; that is not free


@dataclass(frozen=True)
class Race:
    """``start``: seconds from the command to the first sampled token. ``ends``: seconds from there to the end of each step. ``spent``: processor
    seconds of a step, all processes together, behind the first one."""

    start: float
    ends: tuple[float, ...]
    weights: tuple[Path, ...]
    spent: float

    @property
    def step(self) -> float:
        """Median seconds of a step; the first one has nothing before it to overlap with."""
        return median(b - a for a, b in zip(self.ends, self.ends[1:], strict=False))


def headrace(base: str, home: Path, steps: int, rate: float, settings: Sequence[str]) -> Race:
    """The ring from ``base``, with no evaluation in it."""
    settings = [*settings, f"learner.optimizer.lr={rate}"]
    tables: dict[str, Any] = tomllib.loads((ROOT / "recipes" / "tiny.toml").read_text())
    (rl,) = [stage for stage in tables["stage"] if stage["kind"] == "rl"]
    tables["stage"] = [{**rl, "steps": 60, "eval_every": 0, "until_pass_at_1": 0.0}]  # the rate falls as in the recipe
    tables["run"]["model"] = str(Path(base).resolve())
    (home / "tiny.toml").write_text(tomli_w.dumps(tables))
    command = [sys.executable, "-m", "headrace", "run", str(home / "tiny.toml"), "--dir", str(home / "run"), "--plain"]
    began = time.time()
    with subprocess.Popen(
        [*command, *(part for s in settings for part in ("--set", s))], stdout=subprocess.DEVNULL, cwd=ROOT
    ) as process:
        spent: dict[int, float] = {}  # processor seconds by the number of steps taken
        while process.poll() is None and (now := taken(home / "run")) < steps:
            spent.setdefault(now, processor_seconds(process.pid))
            time.sleep(LOOK_SECONDS)
        spent.setdefault(steps, processor_seconds(process.pid))
        process.send_signal(2)
    run = reopen(home / "run")
    log = run.open_log()
    first = min(t.started for _, t in scan(log, run.topics.trajectories) if isinstance(t, Trajectory))
    results = [m for _, m in scan(log, run.topics.steps) if isinstance(m, StepResult)][:steps]
    log.close()
    begun = min((n for n in spent if n > 0), default=steps - 1)
    each = (spent[steps] - spent[begun]) / max(1, steps - begun)
    weights = () if rate == STILL else replayed(home / "run", home, steps)
    return Race(first - began, tuple(m.created - first for m in results), weights, each)


def processor_seconds(pid: int) -> float:
    """Of a process and all below it that live."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for one in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system
    return total


def taken(directory: Path) -> int:
    """Steps that a run has taken so far."""
    if not (directory / "run.toml").exists():
        return 0
    run = reopen(directory)
    log = run.open_log()
    try:
        return sum(isinstance(m, StepResult) for _, m in scan(log, run.topics.steps))
    except Exception:  # the log is being made
        return 0
    finally:
        log.close()


def replayed(directory: Path, home: Path, steps: int) -> tuple[Path, ...]:
    """The weights behind each step of a run, from its log."""
    from learner.config import LearnerConfig
    from learner.model.load import save_model
    from learner.opening import execute_again, model_path
    from learner.planning.records import ManifestReader
    from learner.planning.recovery import read_tail
    from learner.training.state import LearnerState

    torch.set_num_threads(1)
    run = reopen(directory)
    state = LearnerState(LearnerConfig(run.file), model_path(run), run.table.seed, home / "replay")
    state.start("pretrained")
    log = run.open_log()
    reader, tail = ManifestReader(log, run.topics), read_tail(log, run.topics, 0)
    out: list[Path] = []
    for manifest, offset in tail.manifests:
        if execute_again(state, manifest, offset, reader, tail) is not None and len(out) < steps:
            out.append(home / f"weights-{len(out) + 1}")
            save_model(state.model, state.model_path, out[-1])
    reader.close()
    log.close()
    return tuple(out)


def trl(base: str, home: Path, steps: int, rate: float) -> Race:
    """TRL's trainer on both cores; it writes its weights behind each step while its clock stands."""
    python, script = ROOT / ".venv" / "trl" / "bin" / "python", ROOT / "benchmarks" / "trl" / "grpo.py"
    began = time.time()
    done = subprocess.run(
        [str(python), str(script), base, "--steps", str(steps), "--rate", str(rate), "--keep", str(home)],
        check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    (start,) = [line["began"] for line in lines if "began" in line]
    taken_by = [line for line in lines if "step" in line]
    each = (taken_by[-1]["spent"] - taken_by[0]["spent"]) / max(1, len(taken_by) - 1)
    kept = () if rate == STILL else tuple(home / f"weights-{i + 1}" for i in range(len(taken_by)))
    return Race(start - began, tuple(line["seconds"] for line in taken_by), kept, each)


def pass_at_1(model: Path) -> float:
    """Share of right answers to held-out questions, one sample each at temperature 1."""
    from safetensors.torch import load_file

    from actors.engine import Request
    from actors.local.engine import LocalEngine
    from broker.chat import Chat
    from broker.messages import Sampling
    from learner.data.sums import SignedSums
    from rewarders.math import MathAccuracy

    engine = LocalEngine(str(model), slots=64, context=256, seed=1)
    engine.apply(0, load_file(model / "model.safetensors"))
    chat, source, accuracy = Chat(engine.tokenizer), SignedSums(seed=1_000_000, held_out=True), MathAccuracy()
    rows = [source.row(i) for i in range(QUESTIONS)]
    for number, row in enumerate(rows):
        ids = np.array(chat.prompt(row.messages).ids, np.int32)
        engine.submit(Request(str(number), (0,), ids, Sampling(max_new_tokens=ANSWER)))
    right, left = 0, QUESTIONS
    while left:
        for done in engine.poll(1.0):
            left -= 1
            verdict = accuracy(Answer(done.text, rows[int(done.group_id)].answer or "", done.finish_reason))  # type: ignore[arg-type]
            right += verdict is not None and verdict.value >= 1.0
    return right / QUESTIONS


@dataclass(frozen=True)
class Answer:
    """What the rewarder looks at."""

    text: str
    answer: str
    finish_reason: str
    kind: str = "math"
    metadata: Mapping[str, Any] = field(default_factory=dict)


def reached(race: Race) -> tuple[float, int]:
    """Seconds to the end of the first step behind which held-out pass@1 is at the goal, and that step (nan, 0: none)."""
    for number, (end, weights) in enumerate(zip(race.ends, race.weights, strict=True), 1):
        if pass_at_1(weights) >= GOAL:
            return end, number
    return float("nan"), 0


def pair(options: argparse.Namespace, rate: float) -> tuple[list[Race], list[tuple[float, int]]]:
    """A race of each side, and what those reached whose weights were kept."""
    with tempfile.TemporaryDirectory() as home:
        sides = [Path(home) / "headrace", Path(home) / "trl"]
        for side in sides:
            side.mkdir()
        races = [
            headrace(options.base, sides[0], options.steps, rate, options.settings),
            trl(options.base, sides[1], options.steps, rate),
        ]
        return races, [reached(race) for race in races if race.weights]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument(
        "--set", action="append", default=list(SETTINGS), dest="settings", help="of the ring's run file"
    )
    options = parser.parse_args()
    found: list[dict[str, tuple[float, float]]] = []
    for number in range(options.rounds):
        still, _ = pair(options, STILL)
        races, goals = pair(options, RATE)
        row = {
            "seconds a step, the same policy": (still[0].step, still[1].step),
            "processor seconds a step, the same policy": (still[0].spent, still[1].spent),
            "seconds a step, learning": (races[0].step, races[1].step),
            "processor seconds a step, learning": (races[0].spent, races[1].spent),
            f"seconds to held-out {GOAL}": (goals[0][0], goals[1][0]),
            f"steps to held-out {GOAL}": (goals[0][1], goals[1][1]),
            "start, before the clock": (races[0].start, races[1].start),
        }
        found.append(row)
        print(
            f"round {number + 1}:", {k: [round(x, 2) for x in v] for k, v in row.items()}, file=sys.stderr, flush=True
        )
    print(f"256 samples a step, {options.steps} steps, medians of {len(found)} rounds, two cores.\n")
    print("| | headrace | TRL GRPOTrainer | TRL's share of it |\n|---|---|---|---|")
    for name in found[0]:
        ours, theirs = (median(row[name][side] for row in found) for side in (0, 1))
        ratio = median(row[name][1] / row[name][0] for row in found if row[name][0])
        print(f"| {name} | {ours:.2f} | {theirs:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
