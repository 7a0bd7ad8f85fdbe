"""Simulated time: what is to happen, in the order in which it does."""

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
        """Do something ``seconds`` from now; what is due at one time happens in the order in which it was asked for."""
        self._count += 1
        heapq.heappush(self._due, (self.now + max(0.0, seconds), self._count, do))

    def run(self, until: Callable[[], bool]) -> bool:
        """Let time pass until ``until``; False if nothing is left that could happen."""
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
