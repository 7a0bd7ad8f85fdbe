"""``headrace top RUN``: the live view of a run from another terminal. It reads the log and the daemons' metrics, and disturbs nobody."""

from __future__ import annotations

import argparse
from contextlib import closing

from broker.run import Run
from headrace.progress import Progress
from headrace.rundir import find_run
from learner.config import LearnerConfig
from monitoring.daemon import Stop, registrations
from monitoring.live import open_view
from monitoring.view import DaemonView

REFRESH_SECONDS = 1.0


def top_command(options: argparse.Namespace) -> int:
    """Show the run until Ctrl-C; with ``--once`` one time."""
    run = find_run(options.run)
    stop = Stop().install()
    with closing(Progress(run, LearnerConfig(run.file), lambda: daemons(run))) as progress:
        view = open_view(options.plain or options.once)
        try:
            view.update(progress.refresh())
            while not options.once and not stop.wait(REFRESH_SECONDS):
                view.update(progress.refresh())
        finally:
            view.close()
    return 0


def daemons(run: Run) -> list[DaemonView]:
    """The run's daemons that live on this machine."""
    return [DaemonView(d.name, d.role, d.pid, "running") for d in registrations(run.directory)]
