"""Episodes: what the recipe learns, and what a slow environment costs. ``benchmarks/tools.md`` is written from what lies in the folder.

python benchmarks/bench_tools.py FOLDER learn --seeds 0 1 2     # recipes/tiny_tools.toml, whole, once a seed
python benchmarks/bench_tools.py FOLDER slow --pairs 2          # an instant environment and a slow one, in turn
python benchmarks/bench_tools.py FOLDER page
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from broker.messages import StepResult
from headrace.reading.history import History
from headrace.reading.summary import versions
from headrace.running.rundir import reopen

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "tools.md"
RECIPE = ROOT / "recipes" / "tiny_tools.toml"
WAITING = ROOT / "benchmarks" / "toolsbench" / "waiting.toml"
WARM_UP = 15  # steps: the pipeline of eight steps is full, and the slow environment's first answers have come
REAL_SECONDS = 60.0  # the longest step of an environment that is asked about
STEP_SHARE = 1.0  # how long that is here: as long as an optimizer step with the instant environment
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


def rate(directory: Path) -> dict[str, float]:
    """Trained tokens a second and seconds a step, behind the warm-up."""
    opened = reopen(directory)
    with closing(opened.open_log()) as log:
        results: list[StepResult] = History.of(log, opened.topics).results(reinforced=True)
    begun, counted = results[WARM_UP - 1], results[WARM_UP:]
    seconds = counted[-1].created - begun.created
    return {
        "tokens": sum(r.metrics["tokens_trained"] for r in counted) / seconds,
        "step": seconds / len(counted),
        "staleness": statistics.fmean(r.metrics["staleness_mean"] for r in counted),
    }


def slow(folder: Path, pairs: int) -> None:
    """The order changes from pair to pair: a machine that grows slower must not look like an environment that does."""
    first = folder / "first"
    run(WAITING, first, "environments.waiting.longest=0.0")
    longest = round(STEP_SHARE * rate(first)["step"], 3)
    found: list[dict[str, Any]] = []
    for pair in range(pairs):
        kinds = [("instant", 0.0), ("slow", longest)]
        measured = {}
        for name, seconds in kinds[:: 1 if pair % 2 else -1]:
            directory = folder / f"pair-{pair}-{name}"
            run(WAITING, directory, f"environments.waiting.longest={seconds}")
            measured[name] = rate(directory)
        found.append(measured)
        (folder / "slow.json").write_text(
            json.dumps({"longest": longest, "pairs": found, "load": os.getloadavg()[1]}, indent=1)
        )


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
    ratios = [pair["slow"]["tokens"] / pair["instant"]["tokens"] for pair in found["pairs"]]
    step = statistics.fmean(pair["instant"]["step"] for pair in found["pairs"])
    rows = [
        f"| {n} | {p['instant']['tokens']:.0f} | {p['slow']['tokens']:.0f} | {p['slow']['tokens'] / p['instant']['tokens']:.1%} |"
        f" {p['instant']['step']:.2f} | {p['slow']['step']:.2f} | {p['instant']['staleness']:.1f} | {p['slow']['staleness']:.1f} |"
        for n, p in enumerate(found["pairs"], start=1)
    ]
    return [
        "## A slow environment", "",
        f"`benchmarks/toolsbench/waiting.toml`: three replies an episode, `max_lag = 8`, one process of 512 threads. The slow environment takes 0 to {found['longest']:.2f} s",
        f"for each answer, evenly spread; the instant one none. What is asked about are steps of 0 to {REAL_SECONDS:.0f} s in a training whose optimizer steps take as",
        f"long as the longest of them; here a step takes {step:.2f} s, so that minute is scaled to {found['longest']:.2f} s. Not scaled: turns, `max_lag`, threads, slots.",
        "Trained tokens a second, behind the first 15 steps:", "",
        "| pair | instant | slow | ratio | s a step, instant | slow | mean staleness, instant | slow |", "|---|---|---|---|---|---|---|---|", *rows, "",
        f"Median ratio {statistics.median(ratios):.1%}. The machine was shared with other work (load {found['load']:.0f}); the order changed from pair to pair.", "",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=("learn", "slow", "page"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=2)
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
