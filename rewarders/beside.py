"""Resolves the paths in a rewarder's options: ``file.py:Class`` and model directories are relative to the run file's
directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

RUN = "{run}/"  # stands for the run's directory where an option begins with it
RUN_FILE = "run.toml"  # every run's directory holds its run file under this name
_PLACE: ContextVar[Path] = ContextVar("place", default=Path())


@contextmanager
def beside(base: Path) -> Iterator[None]:
    """Rewarders made inside the block resolve their paths relative to ``base``, the run file's directory."""
    token = _PLACE.set(base)
    try:
        yield
    finally:
        _PLACE.reset(token)


def place() -> Path:
    """The run file's directory; the current directory for a rewarder that is made outside of a run."""
    return _PLACE.get()


def located(model: str) -> str:
    """The path of the directory ``model`` beside the run file if it exists, else ``model`` unchanged."""
    beside = place() / model
    return str(beside) if beside.is_dir() else model


def is_made_later(model: str) -> bool:
    """Whether ``model`` is a path in the run's directory that does not exist yet: a stage writes it before the first
    sample comes.
    """
    path = Path(model)
    if model.startswith(RUN):  # the run file is only looked at: there is no run yet
        return True
    return path.is_absolute() and not path.exists() and any((above / RUN_FILE).exists() for above in path.parents)
