"""An flock with a time limit: a process that is stopped while it holds the lock would block all others for ever."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from broker.errors import LogUnavailable
from monitoring.processes import STOPPED, holder_of, state_of

PATIENCE_SECONDS = 10.0
NAP_SECONDS = (0.0001, 0.005)  # shortest and longest pause between two attempts


@contextlib.contextmanager
def held(handle: int, path: Path) -> Iterator[None]:
    """Hold the lock of the open file ``handle`` during the block. Raises LogUnavailable, which names the holder, after
    PATIENCE_SECONDS."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    nap, longest = NAP_SECONDS
    while not _taken(handle):
        if time.monotonic() > deadline:
            raise LogUnavailable(f"{path} has been locked for {PATIENCE_SECONDS:.0f} s by {_named(holder_of(handle))}")
        time.sleep(nap)
        nap = min(nap * 1.5, longest)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _named(pid: int | None) -> str:
    if pid is None:
        return "another process"
    if state_of(pid) == STOPPED:
        return f"process {pid}, which is stopped: `kill -CONT {pid}` lets it go on"
    return f"process {pid}"
