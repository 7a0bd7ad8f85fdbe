"""Whose turn it is among several with weights, so that each is served in proportion at any time. It follows from the number of the turn alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


class Turns:
    """Each turn goes to the one that is furthest behind its weight; of those that are equally far, to the first."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = tuple(weights)
        self._turns: list[tuple[int, int]] = []
        self._taken = [0] * len(self._weights)

    def of(self, number: int) -> tuple[int, int]:
        """Who has turn ``number``, and how many turns it had before."""
        while len(self._turns) <= number:
            which = min(range(len(self._weights)), key=lambda i: ((self._taken[i] + 1) / self._weights[i], i))
            self._turns.append((which, self._taken[which]))
            self._taken[which] += 1
        return self._turns[number]


@lru_cache(maxsize=32)
def turns(weights: tuple[float, ...]) -> Turns:
    """The turns of these weights; what was found of them is kept."""
    return Turns(weights)
