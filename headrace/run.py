"""``headrace run``: the whole ring on this machine, with a live view, from the first step to the report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from broker.errors import RunFault
from broker.run import Run
from headrace.rundir import record
from headrace.runfile import WholeRun, check
from headrace.supervisor import Command, Supervisor, sole_supervisor
from monitoring.daemon import Stop
from monitoring.live import LiveView, open_view

FINISHED, BAD_INPUT, FAULT, INTERRUPTED = 0, 2, 3, 130


def run_all(run: Run, plain: bool) -> int:
    """Run to the end. Returns the exit status; raises RunFileError for bad input, RunFault for a fault."""
    whole = check(run.file)
    with sole_supervisor(run.directory):
        path = record(run)
        view = open_view(plain)
        started = time.monotonic()
        try:
            for line in opening(run, whole):
                view.note(line)
            status = supervise(run, whole, path, view)
        finally:
            view.close()
            from headrace.summary import add_wall_seconds

            wall = add_wall_seconds(run.directory, time.monotonic() - started)
        if status is None:
            print(f"stopped; the same command resumes ({run.directory})", flush=True)
            return INTERRUPTED
        finish(run, wall)
    return FINISHED


def opening(run: Run, whole: WholeRun) -> list[str]:
    """What the run is about to do, in a few lines."""
    resumed = (run.directory / "checkpoints").is_dir() and any((run.directory / "checkpoints").iterdir())
    daemons = ", ".join(c.name for c in commands(whole, Path("run.toml"), run))
    stages = " -> ".join(f"{stage.name} ({stage.kind})" for stage in whole.learner.stages)
    return [
        f"headrace: {'resuming' if resumed else 'starting'} run {run.table.name!r} in {run.directory}",
        f"  stages   {stages}",
        f"  daemons  {daemons}",
        f"  log      {run.url}",
        "  Ctrl-C stops it cleanly; the same command resumes. The first seconds go into loading torch.",
    ]


def commands(whole: WholeRun, path: Path, run: Run) -> list[Command]:
    """The daemons of a run on one machine."""
    common = (str(path), "--dir", str(run.directory), "--name")
    out = [Command("learner-0", "learner", ("learner", *common, "learner-0"))]
    out += [Command(f"actor-{i}", "actor", ("actors", *common, f"actor-{i}")) for i in range(whole.actors.count)]
    for name, table in whole.rewarders.items():
        for i in range(0 if table.external else table.workers):
            daemon = f"{name}-{i}"
            out.append(Command(daemon, "rewarder", ("rewarders", *common, daemon, "--rewarder", name)))
    return out


def supervise(run: Run, whole: WholeRun, path: Path, view: LiveView) -> int | None:
    from headrace.progress import Progress

    supervisor = Supervisor(commands(whole, path, run), run.directory, "learner-0", view.note)
    progress = Progress(run, whole.learner, supervisor.views)
    try:
        status = supervisor.run(Stop().install(), lambda: view.update(progress.refresh()))
        view.update(progress.refresh())
        return status
    finally:
        progress.close()


def finish(run: Run, wall_seconds: float) -> None:
    """Summary, report and plots, from the log. Raises RunFault if the audit of the log finds a fault."""
    from rich.console import Console

    from headrace.verify import verify
    from monitoring.report import summary_table

    summary = write_report(run, wall_seconds)
    Console().print(summary_table(summary))
    print(f"report: {run.directory / 'report.html'}", flush=True)
    log = run.open_log()
    audit = verify(log, run.topics)
    log.close()
    if audit.problems:
        raise RunFault(f"the audit of the log found {len(audit.problems)} problems, first: {audit.problems[0]}")


def write_report(run: Run, wall_seconds: float) -> dict[str, Any]:
    """Write summary.json, report.html and plots/ into the run's directory; returns the summary."""
    from headrace.summary import report_of, summarise
    from monitoring.report import write_html, write_plots

    log = run.open_log()
    try:
        summary = summarise(log, run, wall_seconds)
        (run.directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        report = report_of(log, run, summary)
        write_plots(report, run.directory / "plots")
        write_html(report, run.directory / "report.html")
    finally:
        log.close()
    return summary
