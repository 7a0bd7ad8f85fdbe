"""``headrace report``: summary.json, report.html and plots of a run, from its log; also what a run ends with."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from typing import Any

from broker.run import Run
from headrace.commands.arguments import run_directory
from headrace.reading.audit import Audit
from headrace.reading.report import report_of
from headrace.reading.summary import WallClock, summarise
from headrace.reading.verify import verify
from headrace.running.rundir import reopen
from monitoring.files import replace

LOOKED_INTO = 64  # manifests whose samples are audited at the end of a run; `headrace verify` reads them all


def arguments(sub: argparse.ArgumentParser) -> None:
    run_directory(sub)


def main(options: argparse.Namespace) -> int:
    write_report(reopen(options.run), WallClock(options.run).seconds)
    print(options.run / "report.html")
    return 0


def write_report(run: Run, wall_seconds: float) -> tuple[dict[str, Any], Audit]:
    """Write summary.json, report.html and plots/ into the run's directory; returns the summary and the audit."""
    from monitoring.report import write_html, write_plots  # loads matplotlib

    with closing(run.open_log()) as log:
        audit = verify(log, run.topics, most=LOOKED_INTO)
        summary = summarise(log, run, audit, wall_seconds)
        replace(run.directory / "summary.json", json.dumps(summary, indent=2) + "\n")
        report = report_of(log, run, summary, audit)
        write_plots(report, run.directory / "plots")
        write_html(report, run.directory / "report.html")
    return summary, audit
