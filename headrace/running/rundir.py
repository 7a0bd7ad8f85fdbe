"""A run's directory: the run file as it was started with, so that later commands need the directory alone."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from broker.errors import RunFileError
from broker.run import Run
from broker.runfile import RunFile, RunTable
from monitoring.files import replace

RUN_FILE = "run.toml"


def record(run: Run) -> list[str]:
    """Write the run file with its overrides into the run's directory; returns what differs from the start before.

    Raises RunFileError if the directory holds a run of another name.
    """
    path = run.directory / RUN_FILE
    before = _tables(path)
    name = before.get("run", {}).get("name", run.table.name)
    if name != run.table.name:
        raise RunFileError(
            f"[run] name = {run.table.name!r}, but {run.directory} holds run {name!r}; use another --dir"
        )
    replace(path.with_suffix(".base"), str(run.file.base))  # first: without it relative paths would mean something else
    replace(path, tomli_w.dumps(run.file.tables))
    return changes(before, run.file.tables) if before else []


def reopen(directory: Path, overrides: list[str] | None = None) -> Run:
    """The run that was started in ``directory``. Raises RunFileError if there is none."""
    path = directory / RUN_FILE
    if not path.is_file():
        raise RunFileError(f"{directory} is no run: it has no {RUN_FILE}")
    return Run.open(path, overrides, directory)


def find_run(where: Path) -> Run:
    """The run in directory ``where``, or the one that run file ``where`` starts. Raises RunFileError."""
    if not where.is_file():
        return reopen(where)
    if where.name == RUN_FILE and where.with_suffix(".base").is_file():
        return reopen(where.parent)
    return reopen(Path("runs") / RunFile.read(where).table("run", RunTable).name)


def changes(before: Any, after: Any, where: str = "") -> list[str]:
    """The keys whose values differ, each with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*after, *(name for name in before if name not in after)]
        return [c for n in names for c in changes(before.get(n), after.get(n), f"{where}.{n}" if where else n)]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [c for i, (b, a) in enumerate(zip(before, after, strict=True)) for c in changes(b, a, f"{where}.{i}")]
    return [] if before == after else [f"{where}: {before!r} -> {after!r}"]


def tables_in_force(run: Run) -> Mapping[str, Any]:
    """The tables of the run file as they are now: while the run goes on, its directory has them with the edits."""
    try:
        return _tables(run.directory / RUN_FILE) or run.file.tables
    except RunFileError:
        return run.file.tables


def _tables(path: Path) -> dict[str, Any]:
    """The tables that the run was started with before; none if it is new."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise RunFileError(f"{path} is damaged ({error}); remove it to go on with the run file's own values") from None
