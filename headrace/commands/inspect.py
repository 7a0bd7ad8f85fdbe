"""Commands that look at a run: verify, trace, replay, report. None of them changes the log."""

from __future__ import annotations

import argparse
import dataclasses
import json
from contextlib import closing
from typing import Any

from broker.errors import RunFileError
from headrace.running.rundir import reopen
from monitoring.view import clean_text

COUNTS = (
    "fed", "trained", "dropped", "dead_lettered", "evaluated", "outstanding", "steps", "samples_trained", "dead_letters",
    "duplicate_samples", "expired",
)  # fmt: skip


def verify_command(options: argparse.Namespace) -> int:
    """0 if the log is sound, 1 if not."""
    from headrace.reading.verify import verify

    run = reopen(options.run)
    with closing(run.open_log()) as log:
        audit = verify(log, run.topics)
    if options.json:
        print(json.dumps({"ok": not audit.problem_count, **dataclasses.asdict(audit)}, indent=2))
        return 1 if audit.problem_count else 0
    for name in COUNTS:
        print(f"{name:18} {getattr(audit, name)}")
    for reason, count in sorted(audit.dropped_by_reason.items()):
        print(f"{'dropped, ' + reason:18} {count}")
    for problem in audit.problems:
        print(f"PROBLEM: {clean_text(problem, 400)}")
    if audit.problem_count > len(audit.problems):
        print(f"... and {audit.problem_count - len(audit.problems)} more")
    print(f"NOT SOUND: {audit.problem_count} problems" if audit.problem_count else "sound")
    return 1 if audit.problem_count else 0


def trace_command(options: argparse.Namespace) -> int:
    from headrace.reading.trace import trace

    run = reopen(options.run)
    with closing(run.open_log()) as log:
        lineage = trace(log, run.topics, options.step)
    if options.json:
        print(json.dumps(lineage, indent=2))
        return 0
    print(f"step {lineage['step']} of stage {lineage['stage']}: {len(lineage['groups'])} groups")
    numbers = {**lineage["metrics"], **{f"{k} (s)": v for k, v in lineage["phases"].items()}}
    print("  ".join(f"{name} {value:.4g}" for name, value in numbers.items()) or "not executed yet")
    for group in lineage["groups"]:
        partition, offset = group["prompt"]
        print(f"\n{group['group_id']}  prompts[{partition}] {offset}  {one_line(group['question'], 100)}")
        for sample in group["samples"]:
            print(f"  {sample_line(sample)}")
    for drop in lineage["dropped"]:
        print(f"dropped {drop['group_id']}: {drop['reason']}")
    return 0


def sample_line(sample: dict[str, Any]) -> str:
    """One sample of a trace: where it lies, what sampled it, how it was judged and why, and how it reads."""
    partition, offset = sample["position"]
    head = f"#{sample['index']:<3} trajectories[{partition}] {offset}"
    votes = "  ".join(vote_text(vote) for vote in sample["votes"])
    if "unreadable" in sample:
        return f"{head}  unreadable: {one_line(sample['unreadable'], 200)}  {votes}"
    versions = "+".join(str(version) for version, _ in sample["versions"])
    return (
        f"{head}  version {versions}  staleness {sample['staleness']}  {sample['tokens']} tokens  "
        f"reward {sample['reward']:.3g}  {votes}  {one_line(sample['text'], 80)}"
    )


def vote_text(vote: dict[str, Any]) -> str:
    if "unreadable" in vote:
        return f"{vote['rewarder']}=unreadable"
    given = f"{vote['value']:.3g}" if vote["outcome"] == "value" else vote["outcome"]
    return f"{vote['rewarder']}={given}" + (f" ({one_line(vote['why'], 60)})" if vote["why"] else "")


def one_line(text: str, limit: int) -> str:
    return clean_text(text, limit).replace("\n", " ")


def step_range(text: str) -> tuple[int, int]:
    """The first and the last step of ``A-B`` or ``A``. Raises RunFileError."""
    first, sign, last = text.partition("-")
    numbers = [part.isascii() and part.isdigit() for part in ((first, last) if sign else (first,))]
    if not all(numbers) or not 1 <= int(first) <= int(last or first):
        raise RunFileError(f"--steps {text!r}: write A-B with 1 <= A <= B")
    return int(first), int(last or first)


def replay_command(options: argparse.Namespace) -> int:
    first, last = step_range(options.steps)
    run = reopen(options.run)
    changed = reopen(options.run, options.overrides) if options.overrides else None
    from learner.replay import replay

    print(replay(run, first, last, options.out, changed))
    return 0


def report_command(options: argparse.Namespace) -> int:
    from headrace.commands.run import write_report
    from headrace.reading.summary import WallClock

    write_report(reopen(options.run), WallClock(options.run).seconds)
    print(options.run / "report.html")
    return 0
