"""When Python does not look for cycles of garbage: while libraries are loaded, and once more at the end.

Nearly all that a library makes when it is loaded stays, and a search goes through all of it: with torch and transformers the two take as
long as half of what is loaded.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Search for nothing while the block loads libraries."""
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()


def end_unsearched() -> None:
    """Have this process end without a last search, after its exit functions; what is open is closed as ever."""
    atexit.register(gc.freeze)
