"""A run's directory: the run file as it was started with, so that later commands need the directory alone."""

from __future__ import annotations

from pathlib import Path

import tomli_w

from broker.errors import RunFileError
from broker.run import Run

RUN_FILE = "run.toml"


def record(run: Run) -> Path:
    """Write the run file with its overrides into the run's directory; returns its path."""
    path = run.directory / RUN_FILE
    path.write_text(tomli_w.dumps(run.file.tables), encoding="utf-8")
    path.with_suffix(".base").write_text(str(run.file.base), encoding="utf-8")
    return path


def reopen(directory: Path, overrides: list[str] | None = None) -> Run:
    """The run that was started in ``directory``. Raises RunFileError if there is none."""
    path = directory / RUN_FILE
    if not path.is_file():
        raise RunFileError(f"{directory} is no run: it has no {RUN_FILE}")
    return Run.open(path, overrides, directory)
