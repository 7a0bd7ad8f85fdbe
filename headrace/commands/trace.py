"""``headrace trace``: print the lineage of one optimizer step: its groups, samples and votes, or for a supervised step
its documents.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from typing import Any

from broker.errors import RunFileError
from broker.run import Run
from broker.spelling import nearest
from headrace.commands.arguments import as_json, run_directory
from headrace.reading.stages import named, tables
from headrace.reading.trace import trace, trace_supervised
from headrace.reading.tracetext import one_line, sample_line, turn_lines
from headrace.running.rundir import reopen
from monitoring.view import clean_text


def arguments(sub: argparse.ArgumentParser) -> None:
    run_directory(sub)
    as_json(sub)
    sub.add_argument("step", type=int)
    sub.add_argument("--stage", default="", metavar="NAME", help="a supervised stage: STEP counts within it")


def main(options: argparse.Namespace) -> int:
    run = reopen(options.run)
    with closing(run.open_log()) as log:
        if options.stage:
            lineage = trace_supervised(log, run.topics, stage_named(run, options.stage), options.step)
        else:
            lineage = trace(log, run.topics, options.step)
    if options.json:
        print(json.dumps(lineage, indent=2))
    elif options.stage:
        show_supervised(lineage, options.stage)
    else:
        show(lineage)
    return 0


def stage_named(run: Run, name: str) -> int:
    """The index of the stage ``name``. Raises RunFileError if the run file has no such stage."""
    names = [named(table, index) for index, table in enumerate(tables(run))]
    if name not in names:
        raise RunFileError(f"--stage {name!r}: the run file has no such stage{nearest(name, names)}")
    return names.index(name)


def show_supervised(lineage: dict[str, Any], name: str) -> None:
    documents, rows = lineage["documents"], lineage["rows"]
    print(
        f"step {lineage['step']} of stage {lineage['stage']} ({clean_text(name, 80)}), behind version {lineage['version']}"
    )
    print(numbers_line(lineage))
    print(
        f"documents {documents['first']} to {documents['first'] + documents['count'] - 1} of the stage, "
        f"their tokens {documents['sha256']}"
        if documents["count"]
        else "which documents it has read is not recorded"
    )
    for source, runs in rows.items():
        told = ", ".join(f"{first}" if count == 1 else f"{first}-{first + count - 1}" for first, count in runs)
        print(f"  {clean_text(source, 80) or 'its source'}: {sum(count for _, count in runs)} rows: {told}")


def numbers_line(lineage: dict[str, Any]) -> str:
    numbers = {**lineage["metrics"], **{f"{k} (s)": v for k, v in lineage["phases"].items()}}
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers.items()) or "not executed yet"


def show(lineage: dict[str, Any]) -> None:
    print(f"step {lineage['step']} of stage {lineage['stage']}: {len(lineage['groups'])} groups")
    if (origin := lineage["forked_from"]) is not None:
        print(clean_text(f"of a run forked from {origin['run']} at step {origin['step']} ({origin['where']})", 400))
    if lineage["set_aside"]:
        print(f"set aside, it has trained nothing: {clean_text(lineage['set_aside'], 400)}")
    if lineage["again"]:
        print(f"these are the groups of step {lineage['again']}, which was set aside")
    print(numbers_line(lineage))
    for group in lineage["groups"]:
        partition, offset = group["prompt"]
        print(f"\n{group['group_id']}  prompts[{partition}] {offset}  {one_line(group['question'], 100)}")
        for sample in group["samples"]:
            print(f"  {sample_line(sample)}")
            for line in turn_lines(sample):
                print(f"       {line}")
    for drop in lineage["dropped"]:
        print(f"dropped {drop['group_id']}: {drop['reason']}")
