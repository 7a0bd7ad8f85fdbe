"""``headrace top RUN``: show a run's views in another terminal. Only reads the log and the daemons' metrics."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from contextlib import closing
from types import FrameType

from broker.run import Run
from headrace.commands.arguments import run_directory
from headrace.reading.summary import WallClock
from headrace.running.progress import Progress
from headrace.running.rundir import find_run
from learner.config import LearnerConfig
from monitoring.daemon import registrations
from monitoring.keys import QUIT, SUSPEND, Keys
from monitoring.screen import Pages, open_pages, print_once
from monitoring.view import PAGES, DaemonView, RunView

REFRESH_SECONDS = 1.0


def arguments(sub: argparse.ArgumentParser) -> None:
    run_directory(sub, "a run's directory, or the run file that starts it")
    sub.add_argument("--plain", action="store_true", help="plain lines instead of the display")
    sub.add_argument("--once", action="store_true", help="one look")
    sub.add_argument(
        "--view", dest="views", action="append", default=[], metavar="NAME", choices=PAGES,
        help=f"{', '.join(PAGES)}; with --once as many as you like",
    )  # fmt: skip


def main(options: argparse.Namespace) -> int:
    """Show the run until ``q`` or Ctrl-C; with ``--once``, print each requested view once."""
    run = find_run(options.run)
    with closing(Progress(run, LearnerConfig(run.file), lambda: daemons(run))) as progress:
        if options.once:
            print_once(_look(run, progress, *options.views), options.views)
            return 0
        signal.signal(signal.SIGTERM, _leave)
        signal.signal(signal.SIGHUP, _leave)
        try:
            with Keys() as keys, closing(open_pages(options.plain, (options.views or PAGES)[0], keys.there)) as pages:
                _follow(run, progress, pages, keys)
        except KeyboardInterrupt:
            pass  # Ctrl-C is the normal end
    return 0


def _leave(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C, so that the terminal's content and settings are restored."""
    sys.exit(128 + number)


def _look(run: Run, progress: Progress, *shown: str) -> RunView:
    """The run now, with ``elapsed`` the run's own wall time instead of the time since we began to watch."""
    view = progress.refresh(*shown)
    view.elapsed = WallClock(run.directory).seconds
    return view


def _follow(run: Run, progress: Progress, pages: Pages, keys: Keys) -> None:
    """Draw the run every ``REFRESH_SECONDS``, and at once after a key; returns when the user quits."""
    while True:
        pages.update(_look(run, progress, pages.shown))
        due = time.monotonic() + REFRESH_SECONDS
        while (left := due - time.monotonic()) > 0:
            key = keys.wait(left)
            if key == QUIT:
                return
            if key == SUSPEND:
                pages.close()
                keys.suspend()
                pages.open()
            elif key:
                pages.press(key)
                break


def daemons(run: Run) -> list[DaemonView]:
    """The run's announced daemons, without the supervisor."""
    found = registrations(run.directory)
    return [DaemonView(d.name, d.role, d.pid, "running") for d in found if d.role != "supervisor"]
