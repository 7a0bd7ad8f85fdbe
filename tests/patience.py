"""How long a test waits for what must happen: limits that only a hang reaches, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

HANG = 600.0
"""Seconds. The limit of a whole test (``setup.cfg``) is above it."""
T = TypeVar("T")


def rest() -> None:
    time.sleep(0.01)


def until(happened: Callable[[], T], what: str = "what the test waits for", doing: Callable[[], object] = rest) -> T:
    """What ``happened`` answers once that is true. Whoever waits is ``doing`` something meanwhile."""
    deadline = time.monotonic() + HANG
    while not (answer := happened()):
        assert time.monotonic() < deadline, f"{what} did not happen within {HANG:.0f} s"
        doing()
    return answer
