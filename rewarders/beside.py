"""Where ``file.py:Class`` is looked for when one rewarder's options name another: beside the run file, as everywhere in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

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
