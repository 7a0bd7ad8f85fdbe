"""Prints what the doctor has found, on one screen or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from headrace.doctor import machine
from headrace.doctor.findings import Finding
from monitoring.metrics import LearnerMetrics
from monitoring.view import clean_text


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true")
    sub.add_argument(
        "run", type=Path, nargs="?", metavar="RUN", help="a run's directory, or the run file that starts it"
    )


def main(options: argparse.Namespace) -> int:
    return doctor_command(options.run, options.json)


def doctor_command(run: Path | None, as_json: bool) -> int:
    """0 if nothing is wrong, 1 if something is. Raises RunFileError if there is no such run."""
    return _machine(as_json) if run is None else _run(run, as_json)


def _machine(as_json: bool) -> int:
    checks = [check() for check in machine.CHECKS]
    ok = all(c.ok for c in checks)
    if as_json:
        print(json.dumps({"ok": ok, "checks": [asdict(c) for c in checks]}, indent=2))
        return 0 if ok else 1
    for c in checks:
        print(f"{'ok ' if c.ok else 'BAD'} {c.name:14} {c.found}" + ("" if c.ok else f"; {c.fix}"))
    return 0 if ok else 1


def _run(where: Path, as_json: bool) -> int:
    from headrace.doctor.evidence import gather
    from headrace.doctor.findings import diagnose, moving, state_of
    from headrace.running.rundir import find_run
    from headrace.running.runfile import check

    run = find_run(where)
    evidence = gather(run, check(run.file))
    findings, state = diagnose(evidence), state_of(evidence)
    if as_json:
        print(json.dumps({"ok": not findings, "state": state, "findings": [asdict(f) for f in findings]}, indent=2))
        return 1 if findings else 0
    print(clean_text(state, 400))
    if not any(finding.holds for finding in findings):
        steps = moving(evidence.learner, str(LearnerMetrics.steps))
        print("nothing holds it up: " + ("steps are being trained" if steps else "the next step is on its way"))
    show(findings)
    return 1 if findings else 0


def show(findings: Sequence[Finding]) -> None:
    """What it waits for, the deepest cause first, then what else should be known."""
    words = iter(["it waits, because", *["also"] * len(findings)])
    for finding in sorted(findings, key=lambda f: not f.holds):
        print(f"\n{next(words) if finding.holds else 'notice'}: {clean_text(finding.what, 200)}")
        print(f"  seen   {clean_text(finding.evidence, 500)}")
        print(f"  cure   {clean_text(finding.fix, 400)}")
