"""Retries, at growing intervals, what failed because something it needs was away."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds; the last one for ever


class Later(Generic[T]):
    """``put`` what failed; ``due`` gives it back after its pause."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[T, float] = {}
        self._tries: dict[T, int] = {}

    def put(self, what: T) -> float:
        """Returns the seconds until it is due."""
        tries = self._tries[what] = self._tries.get(what, 0) + 1
        pause = PAUSES[min(tries, len(PAUSES)) - 1]
        self._waiting[what] = self._clock() + pause
        return pause

    def due(self) -> list[T]:
        """What is to be tried now; it is waiting no longer."""
        if not self._waiting:
            return []
        now = self._clock()
        found = [what for what, at in self._waiting.items() if at <= now]
        for what in found:
            del self._waiting[what]
        return found

    def forget(self, what: T) -> None:
        """It is done, or not wanted any more."""
        self._waiting.pop(what, None)
        self._tries.pop(what, None)
