"""The recipe of DeepSeek-R1 in miniature, with the runs that its claims are compared with: ``python -m benchmarks.r1 --seed 0``.

Runs ``recipes/tiny_r1.toml``, then, from the models that it leaves, the arms of ``ARMS``: reinforcement of a student by itself, the language reward
on the base, and the model reward left on. Both are runs like any other: what is cut off goes on when the same command is given again.
``--together`` makes them in one process, where cores are scarce.
Figures go to ``benchmarks/r1/seed-N.json``, and ``--table`` writes those of all seeds into ``benchmarks/r1.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import tomli_w

from broker.messages import Evaluation, Vote
from broker.runfile import RunFile
from headrace.reading.history import History
from headrace.reading.records import scan
from headrace.reading.stages import stage_rows, tables
from headrace.running.rundir import reopen

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "tiny_r1.toml"
FIGURES = ROOT / "benchmarks" / "r1"
PAGE = ROOT / "benchmarks" / "r1.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"
SCORES = ("sums", "language", "hard", "greetings")
STAGES = ("base", "zero", "cold", "reasoning", "tuned", "r1", "medium", "small")


def scores(name: str, model: str = "") -> dict[str, Any]:
    """A stage that asks what the recipe's own evaluations ask."""
    benchmarks: list[dict[str, Any]] = [
        {"name": "sums", "data": "heldout", "questions": 200},
        {"name": "language", "data": "heldout", "questions": 100, "rewarder": "language"},
        {"name": "hard", "data": "heldout_hard", "questions": 100},
        {"name": "greetings", "data": "heldout_general", "questions": 100, "rewarder": "greeting"},
    ]
    return {"kind": "evaluate", "name": name, "benchmarks": benchmarks} | ({"model": model} if model else {})


def left(home: Path, stage: str) -> str:
    """Where the model lies that a stage of the run in ``home`` has left."""
    return str(next(iter(sorted((home / "checkpoints").glob(f"stage-*-{stage}")))))


def arms(home: Path) -> list[dict[str, Any]]:
    """The stages of the second run, from the models of the first in ``home``."""
    spoken = {"prompts": {"accuracy": 1.0, "format": 0.2, "language": 0.5}}
    watched = [
        {"name": "greetings", "data": "heldout_general", "questions": 100, "rewarder": "greeting"},
        {"name": "sums", "data": "heldout", "questions": 100},
    ]
    alone = {"kind": "rl", "name": "medium-rl", "model": left(home, "medium-base"), "steps": 30, "eval_every": 10}
    return [
        alone | {"eval_questions": 200, "rewards": spoken},
        scores("medium-rl-scores"),
        {"kind": "rl", "name": "zero-language", "model": left(home, "base"), "steps": 40, "rewards": spoken},
        scores("zero-language-scores"),
        {
            "kind": "rl", "name": "gamed", "model": left(home, "tuned"), "steps": 40, "data": {"hard": 1.0, "general": 1.0},
            "rewards": {"hard": spoken["prompts"]}, "eval_every": 5, "benchmarks": watched, "learner": {"optimizer": {"lr": 5e-4}},
        },
        scores("gamed-scores"),
    ]  # fmt: skip


def run_together(file: Path, directory: Path, *settings: str) -> None:
    """The same on the ring of the tests: one process and one thread, with the learner, engine and judges of every run."""
    sys.path.insert(0, str(ROOT / "tests"))
    from ring import ring

    model = RunFile.read(file, list(settings)).tables["run"]["model"]
    with ring(directory, f"run.model={(file.parent / model).resolve()}", *settings, file=file) as made:
        made.run()


def run(file: Path, directory: Path, *settings: str) -> None:
    """Raises SystemExit if the run does not come to its end."""
    command = [sys.executable, "-m", "headrace", "run", str(file), "--dir", str(directory), "--plain"]
    command += [part for setting in settings for part in ("--set", setting)]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise SystemExit(f"{directory} did not come to its end; the same command goes on with it")


def second(home: Path, seed: int) -> Path:
    """The run file of the arms, beside the first run: its tables, with stages of their own."""
    told = dict(RunFile.read(RECIPE, []).tables)
    told["run"] = told["run"] | {"name": "tiny_r1_arms", "seed": seed, "model": left(home, "base")}
    rewarders = {name: dict(table) for name, table in told["rewarders"].items()}
    rewarders["judge"]["model"] = str(home / "models" / "preferred")
    told |= {"rewarders": rewarders, "stage": arms(home)}
    path = home.with_name(f"{home.name}-arms.toml")
    path.write_text(tomli_w.dumps(told), encoding="utf-8")
    return path


def figures(directory: Path) -> dict[str, Any]:
    """Of each evaluation: pass@1 with its interval, tokens, and the mean of each rewarder's votes."""
    run = reopen(directory)
    with closing(run.open_log()) as log:
        records = [message for _, message in scan(log, run.topics.steps)]
        found = {m.name: m for m in records if isinstance(m, Evaluation)}
        stage_of = {group: name for name, e in found.items() for group in e.group_ids}
        votes: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for _, vote in scan(log, run.topics.rewards):
            if isinstance(vote, Vote) and vote.value is not None and vote.group_id in stage_of:
                votes[stage_of[vote.group_id]][vote.rewarder].append(vote.value)
    return {
        name: {
            "pass": e.pass_at_1, "interval": list(e.pass_at_1_interval), "questions": e.questions, "tokens": e.response_tokens,
            "votes": {rewarder: fmean(values) for rewarder, values in votes[name].items()},
        }
        for name, e in found.items()
    }  # fmt: skip


def costs(directory: Path) -> dict[str, Any]:
    """Of each stage: steps, tokens trained and generated, and the learner's seconds in its steps."""
    run = reopen(directory)
    with closing(run.open_log()) as log:
        history = History.of(log, run.topics)
        rows = stage_rows(log, run, history)
    seconds: dict[int, float] = defaultdict(float)
    for done in history.executions():
        seconds[done.result.stage] += sum(done.result.phases.values())
    names = [str(table["name"]) for table in tables(run)]
    return {
        row.name: {
            "steps": row.steps, "trained": row.trained, "generated": row.generated,
            "seconds": round(seconds[names.index(row.name)], 1),
        }
        for row in rows
    }  # fmt: skip


def measure(seed: int, home: Path, only: str, run: Callable[..., None] = run) -> None:
    place, began = home / f"seed-{seed}", time.time()
    path = FIGURES / f"seed-{seed}.json"
    FIGURES.mkdir(exist_ok=True)
    told = json.loads(path.read_text()) if path.exists() else {}
    if only != "arms":
        run(RECIPE, place, f"run.seed={seed}")
        told |= {"recipe": figures(place), "costs": costs(place)}
        told["recipe_seconds"] = told.get("recipe_seconds") or time.time() - began
    if only != "recipe":
        run(second(place, seed), home / f"seed-{seed}-arms")
        arms_place = home / f"seed-{seed}-arms"
        told |= {"arms": figures(arms_place), "arms_costs": costs(arms_place)}
    path.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")


# -- the page ----------------------------------------------------------------------------------------------------------


CLAIMS = (
    ("zero raises pass@1", "sums", "pass", ("base", "zero")),
    ("the cold start brings one language", "language", "pass", ("zero", "cold")),
    ("at some cost in sums", "sums", "pass", ("zero", "cold")),
    ("reasoning recovers", "sums", "pass", ("cold", "reasoning")),
    ("chosen answers and the base beat the cold start", "sums", "pass", ("cold", "tuned")),
    ("the second RL keeps reasoning", "sums", "pass", ("tuned", "r1")),
    ("and raises the model's reward of greetings", "greetings", "judge", ("tuned", "r1")),
    ("and greetings that are kind, by the yardstick", "greetings", "pass", ("tuned", "r1")),
    ("a student distilled beats its own RL", "sums", "pass", ("medium-rl", "medium")),
    ("the language reward removes mixing", "language", "pass", ("zero", "zero-language")),
    ("the model's reward left on: the judge", "greetings", "judge", ("tuned", "gamed")),
    ("the yardstick then", "greetings", "pass", ("tuned", "gamed")),
)
"""What is claimed, the benchmark and the figure of it, and the models before and behind."""


def claims(told: dict[int, dict[str, Any]]) -> list[str]:
    """The figures of each claim, a column a seed."""
    lines = [
        "### What is claimed, before and behind", "",
        "| claim | models | " + " | ".join(f"seed {seed}" for seed in told) + " |", "|---|---|" + "---|" * len(told),
    ]  # fmt: skip
    for title, benchmark, figure, (before, behind) in CLAIMS:
        cells = []
        for found in told.values():
            recipe = found["recipe"] | found.get("arms", {})
            pair = [recipe.get(f"{stage}-scores/{benchmark}") for stage in (before, behind)]
            texts = [_share(e) if figure == "pass" else _vote(e, figure) for e in pair]
            cells.append(" to ".join(texts) if all(texts) else "")
        lines.append(f"| {title} | {before}, {behind} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _compute(told: dict[str, Any]) -> list[str]:
    """What the student's two ways have cost."""
    found = {"medium": told.get("costs", {}).get("medium"), "medium-rl": told.get("arms_costs", {}).get("medium-rl")}
    if not all(found.values()):
        return []
    parts = [
        f"{name} {cost['steps']} steps, {cost['trained']:,} tokens trained, {cost['generated']:,} generated, {cost['seconds']:.0f} s"
        for name, cost in found.items()
        if cost
    ]
    return ["The student's two ways: " + "; ".join(parts) + ".", ""]


def table(seed: int, told: dict[str, Any]) -> list[str]:
    """Stage by stage, benchmarks across."""
    recipe = told["recipe"] | told.get("arms", {})
    lines = [
        f"### Seed {seed}", "",
        "| model | sums | hard sums | one language | share of words | format | greetings kind | judge | tokens |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for stage in (*STAGES, "medium-rl", "zero-language", "gamed"):
        found = {name: recipe.get(f"{stage}-scores/{name}") for name in SCORES}
        if not found["sums"]:
            continue
        sums, hard, language, greetings = (found[name] for name in ("sums", "hard", "language", "greetings"))
        low, high = sums["interval"]
        lines.append(
            f"| {stage} | {sums['pass']:.3f} [{low:.3f}, {high:.3f}] | {_share(hard)} | {_share(language)} | "
            f"{_vote(sums, 'language')} | {_vote(sums, 'format')} | {_share(greetings)} | {_vote(greetings, 'judge')} | {sums['tokens']:.0f} |"
        )
    return [*lines, "", *_gamed(recipe), *_compute(told)]


def _gamed(recipe: dict[str, Any]) -> list[str]:
    """Figure 6: the model's reward and the yardstick's in the course of a stage that is trained on the former throughout."""
    steps = sorted(int(name.rpartition(":")[2]) for name in recipe if name.startswith("gamed/greetings:"))
    if not steps:
        return []
    rows = [("judge", "greetings", "judge"), ("greetings kind", "greetings", ""), ("sums", "sums", "")]
    lines = ["| model reward left on, step | " + " | ".join(map(str, steps)) + " |", "|---|" + "---|" * len(steps)]
    for title, benchmark, vote in rows:
        found = [recipe.get(f"gamed/{benchmark}:{step}") for step in steps]
        cells = [_vote(e, vote) if vote else _share(e) for e in found]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _share(found: dict[str, Any] | None) -> str:
    return f"{found['pass']:.3f}" if found else ""


def _vote(found: dict[str, Any] | None, rewarder: str) -> str:
    return f"{found['votes'][rewarder]:.3f}" if found and rewarder in found["votes"] else ""


def write_page() -> None:
    """Put the tables of all seeds between the marks of the page."""
    paths = sorted(FIGURES.glob("seed-*.json"))
    told = {int(path.stem.partition("-")[2]): json.loads(path.read_text()) for path in paths}
    lines = claims(told)
    for seed, found in told.items():
        lines += table(seed, found)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.r1", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "r1", help="where the runs lie")
    parser.add_argument("--only", choices=("", "recipe", "arms"), default="")
    parser.add_argument(
        "--together", action="store_true", help="in one process: less work for the processor, more time"
    )
    parser.add_argument("--table", action="store_true", help="write the page from the figures that are there")
    options = parser.parse_args()
    if not options.table:
        measure(options.seed, options.home.resolve(), options.only, run_together if options.together else run)
    write_page()


if __name__ == "__main__":
    main()
