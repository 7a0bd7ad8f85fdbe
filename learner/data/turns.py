"""Shares turns in proportion to weights, at any time. The number of a turn alone determines whose it is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


class Turns:
    """Gives each turn to the one that is furthest behind its weight, the first of them in a tie. Weights exceed 0."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = tuple(weights)
        self._turns: list[tuple[int, int]] = []
        self._taken = [0] * len(self._weights)

    def of(self, number: int) -> tuple[int, int]:
        """The index of the one that has turn ``number``, and how many turns it had before."""
        while len(self._turns) <= number:
            which = min(range(len(self._weights)), key=lambda i: ((self._taken[i] + 1) / self._weights[i], i))
            self._turns.append((which, self._taken[which]))
            self._taken[which] += 1
        return self._turns[number]


@lru_cache(maxsize=32)
def turns(weights: tuple[float, ...]) -> Turns:
    """The shared ``Turns`` of these weights: computed turns are kept for the next caller."""
    return Turns(weights)
