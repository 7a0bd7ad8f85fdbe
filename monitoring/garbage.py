"""Suspends Python's garbage collector while libraries are loaded, and skips its last run at exit.

Nearly every object that a library creates on import stays alive, and each collection scans all of them: with torch and
transformers, these collections take half as long as the imports.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Suspend garbage collection while the block loads libraries."""
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()


def end_unsearched() -> None:
    """Have this process skip the last garbage collection at exit; exit functions run and open files are closed as
    usual.
    """
    atexit.register(gc.freeze)
