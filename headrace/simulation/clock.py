"""Simulated time: a queue of events in the order in which they happen."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    """``now`` in seconds since the beginning of the simulation. Called it tells the time, as ``time.time`` does."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Call ``do`` ``seconds`` from now; events due at the same time happen in the order in which they were
        requested.
        """
        self._count += 1
        heapq.heappush(self._due, (self.now + max(0.0, seconds), self._count, do))

    def run(self, until: Callable[[], bool]) -> bool:
        """Process events until ``until()`` is true; False if none are left before that."""
        while not until():
            if not self._due:
                return False
            self.now, _, do = heapq.heappop(self._due)
            do()
        return True


class Busy:
    """How long something was at work since ``begin``, by a clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._at_work, self._since, self._total, self._begun = clock, 0, 0.0, 0.0, 0.0

    def begin(self) -> None:
        self._total, self._begun, self._since = 0.0, self._clock.now, self._clock.now

    def change(self, by: int) -> None:
        """One more (or less) is at work."""
        if self._at_work:
            self._total += self._clock.now - self._since
        self._since = self._clock.now
        self._at_work += by

    @property
    def share(self) -> float:
        passed = self._clock.now - self._begun
        at_work = self._total + (self._clock.now - self._since if self._at_work else 0.0)
        return at_work / passed if passed else 0.0
