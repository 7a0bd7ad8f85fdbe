"""A published version under names of an actor's own: newer ones may replace it while it is read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.errors import EngineError


def pin(model: Path, place: Path) -> Path:
    """``place``, with the files of ``model``: links, or copies where it is on another file system. Raises EngineError."""
    shutil.rmtree(place, ignore_errors=True)
    if not model.is_dir():
        raise EngineError(f"there are no weights at {model}")
    try:
        shutil.copytree(model, place, copy_function=os.link)
    except shutil.Error:  # another file system, or a version that is being removed
        shutil.rmtree(place, ignore_errors=True)
        try:
            shutil.copytree(model, place)
        except (shutil.Error, OSError) as error:
            raise EngineError(f"the weights at {model} cannot be read: {error}") from error
    except OSError as error:
        raise EngineError(f"the weights at {model} cannot be read: {error}") from error
    return place


@contextmanager
def pinned(model: Path, place: Path) -> Iterator[Path]:
    """As ``pin``, while the block runs."""
    try:
        yield pin(model, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
