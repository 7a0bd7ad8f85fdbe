"""Evaluations requested while a run is in progress: one file each in RUN/evaluations, which outlives both the requester and the learner.

The learner picks up the files there, and removes each once its result is in the log.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path

import tomli_w
from pydantic import Field

from broker.errors import RunFileError
from broker.runfile import parse
from learner.tables import Benchmark

log = logging.getLogger("learner")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"


class Asked(Benchmark):
    """What is asked for, by a name of its own."""

    name: str = Field(pattern=NAME)


def place(directory: Path, name: str) -> Path:
    return directory / "evaluations" / f"{name}.toml"


def leave(directory: Path, asked: Asked) -> Path:
    """Put the request where the learner looks. Raises RunFileError if one of this name lies there already."""
    path = place(directory, asked.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(tomli_w.dumps(asked.model_dump(exclude_unset=True)), encoding="utf-8")
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise RunFileError(f"evaluation {asked.name!r} has been asked for already; use another --name") from None
    finally:
        temporary.unlink()
    return path


def find(directory: Path, known: Collection[str]) -> Iterator[Asked]:
    """The requests that are there and not among ``known``. One that cannot be read is logged and renamed."""
    for path in sorted((directory / "evaluations").glob("*.toml")):
        if path.stem in known:
            continue
        try:
            yield parse(tomllib.loads(path.read_text(encoding="utf-8")), Asked, str(path))
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RunFileError) as error:
            log.warning("%s is no request for an evaluation: %s", path, error)
            path.rename(path.with_suffix(".refused"))


def judges(directory: Path) -> set[str]:
    """The rewarders that judge what is requested."""
    return {asked.rewarder for asked in find(directory, ())}
