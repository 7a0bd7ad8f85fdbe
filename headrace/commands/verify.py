"""``headrace verify``: audit a run's log. It changes nothing, except that ``--seal`` may append a seal."""

from __future__ import annotations

import argparse
import dataclasses
import json
from contextlib import closing

from headrace.commands.arguments import as_json, run_directory
from headrace.reading.audit import COUNTS, Audit
from headrace.reading.verify import verify, verify_on
from headrace.running.rundir import reopen
from monitoring.view import clean_text


def arguments(sub: argparse.ArgumentParser) -> None:
    run_directory(sub)
    as_json(sub)
    sub.add_argument(
        "--seal",
        action="store_true",
        help="begin at the newest seal in the log, and leave a new one behind what is sound",
    )


def main(options: argparse.Namespace) -> int:
    """Returns 0 if the log is sound, else 1."""
    run = reopen(options.run)
    with closing(run.open_log()) as log:
        audit = verify_on(log, run.topics) if options.seal else verify(log, run.topics)
    if options.json:
        print(json.dumps({"ok": not audit.problem_count, **dataclasses.asdict(audit)}, indent=2))
    else:
        show(audit)
    return 1 if audit.problem_count else 0


def show(audit: Audit) -> None:
    for name in COUNTS:
        print(f"{name:18} {getattr(audit, name)}")
    for reason, count in sorted(audit.dropped_by_reason.items()):
        print(f"{'dropped, ' + reason:18} {count}")
    for problem in audit.problems:
        print(f"PROBLEM: {clean_text(problem, 400)}")
    if audit.problem_count > len(audit.problems):
        print(f"... and {audit.problem_count - len(audit.problems)} more")
    if audit.forked_from:
        print(f"forked from {clean_text(audit.forked_from, 400)}: what lies before is audited there")
    if audit.sealed:
        print(f"begun at record {audit.sealed} of the steps: an audit before this one has found all below it sound")
    print(f"NOT SOUND: {audit.problem_count} problems" if audit.problem_count else "sound")
