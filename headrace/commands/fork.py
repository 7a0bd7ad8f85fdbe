"""``headrace fork``: create a new run from a step of another one, with ``--set`` for other settings.

The old run is only read.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from broker.errors import RunFileError
from broker.run import Run
from broker.runfile import RunFile
from headrace.commands.arguments import overrides, run_directory
from headrace.running.rundir import RUN_FILE, record, reopen
from headrace.running.runfile import check


def arguments(sub: argparse.ArgumentParser) -> None:
    run_directory(sub, "the directory of the run to begin from")
    sub.add_argument("--at", type=int, required=True, metavar="STEP", help="the policy version to begin with")
    sub.add_argument("--dir", dest="directory", type=Path, required=True, metavar="NEW", help="the new run's directory")
    overrides(sub)


def main(options: argparse.Namespace) -> int:
    old = reopen(options.run)
    file = new_file(options.run / RUN_FILE, options.directory, options.overrides)
    check(file)
    same_stages(old.file, file)
    if options.at < 0:
        raise RunFileError(f"--at {options.at}: a step is at least 0")
    if options.directory.exists() and (not options.directory.is_dir() or any(options.directory.iterdir())):
        raise RunFileError(f"--dir {options.directory} is not empty; a fork begins a new run")
    from learner.fork import fork  # loads torch: a mistake in the arguments is reported before that

    new = Run.of(file, options.directory)
    try:
        record(new)
        made = fork(old, options.at, new, lambda line: print(f"headrace: {line}", flush=True))
    except BaseException:
        shutil.rmtree(new.directory, ignore_errors=True)  # it was empty or missing before, and holds nothing useful
        raise
    print(
        f"forked from step {options.at} of {old.table.name!r}: stage {made.progress.stage}, step {made.progress.stage_step} of it; "
        f"{made.asked_anew} rows that were under way are asked anew"
        + (f", {made.gone} are not: retention has removed their prompts" if made.gone else "")
    )
    print(f"start it: headrace run {new.directory / RUN_FILE} --dir {new.directory}")
    return 0


def new_file(path: Path, directory: Path, overridden: list[str]) -> RunFile:
    """The old run's file with ``--set`` applied, named after the new directory unless another name was set."""
    named = any(o.partition("=")[0].strip() == "run.name" for o in overridden)
    return RunFile.read(path, overridden if named else [*overridden, f'run.name="{directory.resolve().name}"'])


def same_stages(old: RunFile, new: RunFile) -> None:
    """Raises RunFileError if a stage's kind or name differs: steps refer to stages by index."""
    before, after = old.tables.get("stage", []), new.tables.get("stage", [])
    for number, (was, now) in enumerate(zip(before, after, strict=False)):
        for key in ("kind", "name"):
            if was.get(key) != now.get(key):
                raise RunFileError(
                    f"[[stage]] {number} {key} = {now.get(key)!r}: it was {was.get(key)!r}, and a fork keeps the stages of its run"
                )
