"""``headrace replay``: train recorded steps again, with the same or other settings."""

from __future__ import annotations

import argparse
from pathlib import Path

from headrace.commands.arguments import overrides, run_directory, step_range
from headrace.running.rundir import reopen


def arguments(sub: argparse.ArgumentParser) -> None:
    run_directory(sub)
    sub.add_argument("--steps", required=True, metavar="A-B")
    sub.add_argument("--out", required=True, type=Path)
    overrides(sub)


def main(options: argparse.Namespace) -> int:
    first, last = step_range(options.steps)
    run = reopen(options.run)
    changed = reopen(options.run, options.overrides) if options.overrides else None
    from learner.replay import replay  # loads torch: a mistake in the arguments is reported before that

    print(replay(run, first, last, options.out, changed))
    return 0
