"""``headrace plan``: check a run file and everything that it names, and print what would run and what to know first; it
creates nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from broker.errors import RunFileError
from broker.runfile import RunFile
from headrace.commands import simulate
from headrace.commands.arguments import as_json, run_file
from headrace.preflight.ahead import PLAN_SECONDS, lines, look_ahead
from headrace.preflight.findings import error
from headrace.running.runfile import WholeRun, check

BAD_INPUT, FAULT = 2, 3


def arguments(sub: argparse.ArgumentParser) -> None:
    run_file(sub)
    as_json(sub)
    simulate.arguments(sub)


def main(options: argparse.Namespace) -> int:
    """Returns 0; 2 if something in the run file cannot work; 3 if not everything could be checked. Raises RunFileError
    if it is invalid.
    """
    simulate.check(options)
    try:
        whole = check(RunFile.read(options.file, options.overrides))
    except RunFileError as fault:
        if not options.json:
            raise
        mistake = error(str(options.file), str(fault), "correct it, and run headrace plan again")
        print(json.dumps({"ok": False, "plan": [], "checks": [], "findings": [asdict(mistake)]}, indent=2))
        return BAD_INPUT
    planned = list(plan(whole, options.directory))
    if not options.json:
        print("\n".join(planned), flush=True)
    if options.simulate:
        forecast = simulate.simulate(options, whole)
        data = {"ok": True, "plan": planned, **simulate.as_data(*forecast)}
        print(json.dumps(data, indent=2) if options.json else "\n".join(simulate.told(*forecast)))
        return 0
    looked = look_ahead(whole.file, PLAN_SECONDS, thorough=True)
    status = BAD_INPUT if looked.errors else FAULT if looked.broken else 0
    if options.json:
        told = {"ok": status == 0, "plan": planned, "checks": looked.checks, "broken": looked.broken}
        print(json.dumps({**told, "findings": [asdict(f) for f in looked.of("error", "warning", "note")]}, indent=2))
        return status
    for line in lines(looked.of("error", "warning", "note")):
        print(line)
    if looked.broken:
        print(f"  not everything was checked: {looked.broken}")
    counts = [f"{len(found)} {level}s" for level in ("error", "warning") if (found := looked.of(level))]
    print(f"  {len(looked.checks)} checks in {looked.seconds:.1f} s: {', '.join(counts) or 'no problem was found'}")
    return status


def plan(whole: WholeRun, directory: Path | None) -> Iterator[str]:
    """What would run: the run, its log, stages, learner, actors and rewarders, a line each."""
    home = (directory or Path("runs") / whole.run.name).resolve()
    yield f"run {whole.run.name} in {home}: model {whole.run.model}, seed {whole.run.seed}"
    yield f"  log {whole.broker.url or f'sqlite://{home}/log'}"
    for number, stage in enumerate(whole.learner.stages):
        shown = {k: v for k, v in stage.model_dump(exclude_defaults=True).items() if k not in ("name", "kind")}
        yield f"  stage {number} {stage.name} ({stage.kind}) {shown}"
    ranks = whole.learner.learner.processes
    learner = f"1 learner of {ranks} processes" if ranks > 1 else "1 learner"
    yield f"  {learner}, {whole.actors.count} actors ({whole.actors.engine}, {whole.actors.slots} slots each)"
    if whole.learner.learner.colocated:
        yield f"  they take shifts on one set of devices: {whole.learner.learner.shift_steps} steps a shift"
    for name, table in whole.rewarders.items():
        weight = whole.run.rewards.get(name)
        mix = "not in [run] rewards" if weight is None else f"weight {weight:g}"
        started = "a program of yours" if table.external else f"{table.use}, {table.workers} workers"
        yield f"  rewarder {name}: {started}, {mix}"
