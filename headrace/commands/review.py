"""``headrace review RUN STAGE [FILE]``: human review of a ``rewrite`` stage's rows.

Without FILE it prints where the rows are; with FILE it checks the edited rows and puts them where the waiting stage
finds them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from broker.errors import RunFileError
from headrace.commands.arguments import run_directory
from headrace.running.rundir import reopen
from learner.config import LearnerConfig
from learner.rewriting.review import offered, returned, take_back
from learner.stages.rewrite import RewriteStage


def arguments(sub: argparse.ArgumentParser) -> None:
    run_directory(sub)
    sub.add_argument("stage", help="name of the rewrite stage")
    sub.add_argument(
        "file", nargs="?", type=Path, help="the edited rows, JSON lines; those left out are not trained on"
    )


def main(options: argparse.Namespace) -> int:
    """Raises RunFileError for a stage without a review, DataError for a mistake in the file."""
    run = reopen(options.run)
    stages = [stage for stage in LearnerConfig(run.file).stages if isinstance(stage, RewriteStage)]
    names = [stage.name for stage in stages if stage.review != "none"]
    if options.stage not in names:
        raise RunFileError(
            f"{options.stage!r} is no stage whose rows are reviewed; {', '.join(names) or 'this run has none'}"
        )
    there = offered(run.directory, options.stage)
    if options.file is not None:
        kept, of = take_back(run.directory, options.stage, options.file)
        print(f"{kept} of {of} rows are kept, {of - kept} are left out")
    elif not there.exists():
        print(f"there are no rows to review yet; they will be in {there}")
    else:
        back = returned(run.directory, options.stage)
        told = "they have come back" if back.exists() else "edit a copy of it, and name it as FILE"
        print(f"{there}: {sum(1 for _ in there.open(encoding='utf-8'))} rows; {told}")
    return 0
