"""Which documents supervised steps have read since somebody asked last: numbers, and a digest of their tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from broker.messages import IntArray

CHARACTERS = 16


class Read:
    """The documents of steps one after the other. Where a step does not follow the one before (another stage, a redo), it begins anew."""

    def __init__(self) -> None:
        self._first = self._next = 0
        self._digest = hashlib.sha256()

    def take(self, first: int, tokens: Iterable[IntArray]) -> None:
        """Count the documents of a step; ``first`` is the number of the first one."""
        if first != self._next:
            self._begin(first)
        for document in tokens:
            self._digest.update(len(document).to_bytes(8, "little") + document.astype("<i4").tobytes())
            self._next += 1

    def told(self) -> tuple[int, int, str] | None:
        """Number of the first, how many, and their digest, since the last call; None where there were none."""
        count = self._next - self._first
        found = (self._first, count, self._digest.hexdigest()[:CHARACTERS]) if count else None
        self._begin(self._next)
        return found

    def _begin(self, number: int) -> None:
        self._first = self._next = number
        self._digest = hashlib.sha256()
