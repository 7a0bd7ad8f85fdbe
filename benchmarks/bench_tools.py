"""Episodes: what the recipe learns, and what a slow environment costs. ``benchmarks/tools.md`` is written from what lies in the folder.

python benchmarks/bench_tools.py FOLDER learn --seeds 0 1 2     # recipes/tiny_tools.toml, whole, once a seed
python benchmarks/bench_tools.py FOLDER slow --pairs 1          # an instant environment and a slow one, in turn
python benchmarks/bench_tools.py FOLDER page
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolsbench.throughput import Measured, measure, model

from headrace.reading.history import History
from headrace.reading.summary import versions
from headrace.running.rundir import reopen

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "tools.md"
RECIPE = ROOT / "recipes" / "tiny_tools.toml"
STEPS = 3
SHARES = (1.0,)  # the longest answer of the slow environment, in steps
NAMES = ("python", "torch", "transformers", "numpy")


def run(file: Path, directory: Path, *settings: str) -> float:
    """A whole run; returns the CPU seconds of all its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    options = [part for s in settings for part in ("--set", s)]
    command = [sys.executable, "-m", "headrace", "run", str(file), "--plain", "--dir", str(directory), *options]
    directory.mkdir(parents=True)
    with (directory / "out").open("wb") as out:
        done = subprocess.run(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    if done.returncode:
        raise SystemExit((directory / "out").read_text()[-3000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def learn(folder: Path, seed: int) -> None:
    directory = folder / f"seed-{seed}"
    cpu = run(RECIPE, directory, f"run.seed={seed}")
    opened = reopen(directory)
    with closing(opened.open_log()) as log:
        history = History.of(log, opened.topics)
        evaluations = [(e.name, e.pass_at_1, *e.pass_at_1_interval) for e in history.evaluations()]
    summary = json.loads((directory / "summary.json").read_text())
    found = {
        "seed": seed, "evaluations": evaluations, "seconds": summary["wall_seconds"], "cpu": round(cpu, 1), "steps": summary["steps"],
        "groups": summary["groups"], "load": os.getloadavg()[1], "versions": {name: versions()[name] for name in NAMES},
    }  # fmt: skip
    (folder / f"learn-{seed}.json").write_text(json.dumps(found, indent=1))


def slow(folder: Path, pairs: int) -> None:
    """Instant and slow in turn, within one process: a machine that others use must not look like an environment that is slow."""
    path = model(folder / "model")
    first = measure(folder / "first", path, 0.0, steps=STEPS, warm_up=2)
    rows: list[dict[str, Any]] = []
    for share in SHARES:
        longest = round(share * first.step, 3)
        for pair in range(pairs):
            kinds = [("instant", 0.0), ("slow", longest)][:: 1 if pair % 2 else -1]
            found = {
                name: asdict(
                    measure(folder / f"{share}-{pair}-{name}", path, seconds, steps=STEPS, warm_up=int(share) + 2)
                )
                for name, seconds in kinds
            }
            rows.append({"share": share, "longest": longest, **found})
            (folder / "slow.json").write_text(json.dumps({"rows": rows, "load": os.getloadavg()[1]}, indent=1))


def page(folder: Path) -> str:
    learned = [json.loads(path.read_text()) for path in sorted(folder.glob("learn-*.json"))]
    lines = [
        "# Episodes: what is learned, and what a slow environment costs",
        "",
        "Written by `benchmarks/bench_tools.py`.",
        "",
    ]
    if learned:
        told = ", ".join(f"{name} {version}" for name, version in learned[0]["versions"].items())
        lines += [
            f"Two cores, one thread a process; {told}.", "", "## recipes/tiny_tools.toml", "",
            "A tiny model guesses a number from 0 to 9 in five guesses, with hints. Held-out success (pass@1 of 400 games at temperature 1, 95% interval):", "",
            "| seed | before | after 10 steps | after 20 | at the end | steps | seconds | CPU seconds | load |", "|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        lines += [_learned(row) for row in learned]
        lines += [
            "", "Seconds are of the whole run, base model and evaluations included, on a machine with the load that is given; CPU seconds are of all its",
            "processes: half of them is what two idle cores need at least.", "",
        ]  # fmt: skip
    if (folder / "slow.json").exists():
        lines += _slow(json.loads((folder / "slow.json").read_text()))
    return "\n".join(lines).rstrip() + "\n"


def _learned(row: dict[str, Any]) -> str:
    shown = {name: f"{value:.3f} [{low:.3f}, {high:.3f}]" for name, value, low, high in row["evaluations"]}
    during = [f"{value:.3f}" for name, value, _, _ in row["evaluations"] if ":" in name]
    ten, twenty = [*during, "", ""][:2]
    return (
        f"| {row['seed']} | {shown['before']} | {ten} | {twenty} | {shown['after']} | {row['steps']} | {row['seconds']:.0f} | {row['cpu']:.0f} |"
        f" {row['load']:.1f} |"
    )


def _slow(found: dict[str, Any]) -> list[str]:
    lines = [
        "## A slow environment", "",
        "A real log, engine and environment, and a learner that is infinitely fast: its credits alone (`benchmarks/toolsbench/throughput.py`), 4 groups of 8 a",
        "step, `max_lag = 8`, 32 slots, three replies of up to 160 tokens an episode, one process of 512 threads. The slow environment takes between 0 and",
        "`longest` seconds for each answer, evenly spread; the instant one takes none. What is asked about are answers of up to 60 s; what they cost depends on",
        "how long a step of the training takes beside them. So the seconds are scaled: `longest` is given as a share of the time in which the engine samples",
        "one step with the instant environment (1: a training that takes a step a minute). Turns, lag, slots and threads are not.", "",
        "| longest / step | longest, s | slots taken, instant | slow | tokens a CPU second, instant | slow | ratio | tokens a second, instant | slow |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        instant, late = Measured(**row["instant"]), Measured(**row["slow"])
        lines.append(
            f"| {row['share']:g} | {row['longest']:.2f} | {instant.taken:.1%} | {late.taken:.1%} | {instant.worked:.0f} | {late.worked:.0f} |"
            f" {late.undisturbed / instant.undisturbed:.1%} | {instant.tokens:.0f} | {late.tokens:.0f} |"
        )
    told = (
        "The ratio is of slots taken times tokens a CPU second of the actor (its threads that wait for the environment included): what an actor with a core of"
        f" its own would sample. The machine was shared with other work (load {found['load']:.0f}), so tokens a second say little."
        " Asked are 90%, as the median of the pairs: single ones wander with what else the machine does."
    )
    return [*lines, "", told, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=("learn", "slow", "page"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.what == "learn":
        for seed in options.seeds:
            learn(options.folder, seed)
    elif options.what == "slow":
        slow(options.folder, options.pairs)
    PAGE.write_text(page(options.folder))


if __name__ == "__main__":
    main()
