"""Where what a rewarder's options name is looked for: ``file.py:Class`` and directories of models beside the run file, as everywhere in it."""

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
    """What is made inside is made for a run file in ``base``."""
    token = _PLACE.set(base)
    try:
        yield
    finally:
        _PLACE.reset(token)


def place() -> Path:
    """The run file's directory; for a rewarder that is made by hand, the current one."""
    return _PLACE.get()


def located(model: str) -> str:
    """A model's directory beside the run file where there is one of that name, else ``model`` as it is."""
    beside = place() / model
    return str(beside) if beside.is_dir() else model


def is_made_later(model: str) -> bool:
    """Whether ``model`` is a place in a run's directory where nothing is yet: a stage leaves it before the first sample comes."""
    path = Path(model)
    if model.startswith(RUN):  # the run file is only looked at: there is no run yet
        return True
    return path.is_absolute() and not path.exists() and any((above / RUN_FILE).exists() for above in path.parents)
