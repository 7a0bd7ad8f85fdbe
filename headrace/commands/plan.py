"""``headrace plan``: check a run file and say what would run; it makes nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from broker.runfile import RunFile
from headrace.commands.arguments import run_file
from headrace.running.runfile import check


def arguments(sub: argparse.ArgumentParser) -> None:
    run_file(sub)


def main(options: argparse.Namespace) -> int:
    whole = check(RunFile.read(options.file, options.overrides))
    home = (options.directory or Path("runs") / whole.run.name).resolve()
    print(f"run {whole.run.name} in {home}: model {whole.run.model}, seed {whole.run.seed}")
    print(f"  log {whole.broker.url or f'sqlite://{home}/log'}")
    for number, stage in enumerate(whole.learner.stages):
        shown = {k: v for k, v in stage.model_dump(exclude_defaults=True).items() if k not in ("name", "kind")}
        print(f"  stage {number} {stage.name} ({stage.kind}) {shown}")
    ranks = whole.learner.learner.processes
    learner = f"1 learner of {ranks} processes" if ranks > 1 else "1 learner"
    print(f"  {learner}, {whole.actors.count} actors ({whole.actors.engine}, {whole.actors.slots} slots each)")
    if whole.learner.learner.colocated:
        print(f"  they take shifts on one set of devices: {whole.learner.learner.shift_steps} steps a shift")
    for name, table in whole.rewarders.items():
        weight = whole.run.rewards.get(name)
        mix = "not in [run] rewards" if weight is None else f"weight {weight:g}"
        started = "a program of yours" if table.external else f"{table.use}, {table.workers} workers"
        print(f"  rewarder {name}: {started}, {mix}")
    return 0
