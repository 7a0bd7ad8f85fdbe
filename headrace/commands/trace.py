"""``headrace trace``: the lineage of one optimizer step, from its samples to their votes."""

from __future__ import annotations

import argparse
import json
from contextlib import closing

from headrace.commands.arguments import as_json, run_directory
from headrace.reading.trace import trace
from headrace.reading.tracetext import one_line, sample_line, turn_lines
from headrace.running.rundir import reopen
from monitoring.view import clean_text


def arguments(sub: argparse.ArgumentParser) -> None:
    run_directory(sub)
    as_json(sub)
    sub.add_argument("step", type=int)


def main(options: argparse.Namespace) -> int:
    run = reopen(options.run)
    with closing(run.open_log()) as log:
        lineage = trace(log, run.topics, options.step)
    if options.json:
        print(json.dumps(lineage, indent=2))
        return 0
    print(f"step {lineage['step']} of stage {lineage['stage']}: {len(lineage['groups'])} groups")
    if (origin := lineage["forked_from"]) is not None:
        print(clean_text(f"of a run forked from {origin['run']} at step {origin['step']} ({origin['where']})", 400))
    if lineage["set_aside"]:
        print(f"set aside, it has trained nothing: {clean_text(lineage['set_aside'], 400)}")
    numbers = {**lineage["metrics"], **{f"{k} (s)": v for k, v in lineage["phases"].items()}}
    print("  ".join(f"{name} {value:.4g}" for name, value in numbers.items()) or "not executed yet")
    for group in lineage["groups"]:
        partition, offset = group["prompt"]
        print(f"\n{group['group_id']}  prompts[{partition}] {offset}  {one_line(group['question'], 100)}")
        for sample in group["samples"]:
            print(f"  {sample_line(sample)}")
            for line in turn_lines(sample):
                print(f"       {line}")
    for drop in lineage["dropped"]:
        print(f"dropped {drop['group_id']}: {drop['reason']}")
    return 0
