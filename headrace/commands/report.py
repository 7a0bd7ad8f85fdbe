"""``headrace report``: write summary.json, report.html and plots of a run, from its log; each run also ends with it.

With ``--votes A B`` it writes nothing, but compares two rewarders (``NAME`` or ``NAME@VERSION``) on the samples that
both judged.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from typing import Any

from broker.run import Run
from headrace.commands.arguments import as_json, run_directory
from headrace.reading.audit import Audit
from headrace.reading.history import History
from headrace.reading.report import report_of
from headrace.reading.stages import further
from headrace.reading.summary import WallClock, summarise
from headrace.reading.verify import verify
from headrace.reading.votes import Choice, compare, lines
from headrace.running.rundir import reopen
from monitoring.files import replace
from monitoring.view import clean_text

SHOWN = 20_000  # characters printed at most: a rewarder's reasons may be long
LOOKED_INTO = 64  # how many manifests have their samples audited for the report; `headrace verify` audits all


def arguments(sub: argparse.ArgumentParser) -> None:
    run_directory(sub)
    sub.add_argument(
        "--votes",
        nargs=2,
        metavar=("A", "B"),
        help="compare two rewarders, NAME or NAME@VERSION, on what both have judged",
    )
    as_json(sub)


def main(options: argparse.Namespace) -> int:
    run = reopen(options.run)
    if options.votes is not None:
        left, right = map(Choice.of, options.votes)
        with closing(run.open_log()) as log:
            found = compare(log, run.topics, left, right)
        print(json.dumps(found.to_json(), indent=2) if options.json else clean_text("\n".join(lines(found)), SHOWN))
        return 0
    summary, _ = write_report(run, WallClock(options.run).seconds)
    print(json.dumps(summary, indent=2) if options.json else options.run / "report.html")
    return 0


def write_report(run: Run, wall_seconds: float) -> tuple[dict[str, Any], Audit]:
    """Write summary.json, report.html and plots/ into the run's directory; returns the summary and the audit."""
    from monitoring.report import write_html, write_plots  # loads matplotlib

    with closing(run.open_log()) as log:
        audit = verify(log, run.topics, most=LOOKED_INTO)
        summary = summarise(log, run, audit, wall_seconds)
        report = report_of(log, run, summary, audit)
        summary |= further(report, History.of(log, run.topics))
        report.summary = dict(summary)
        replace(run.directory / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_plots(report, run.directory / "plots")
        write_html(report, run.directory / "report.html")
    return summary, audit
