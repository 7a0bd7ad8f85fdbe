"""The prompts of a run in the order in which they were fed, from all partitions."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping

from broker.errors import DecodeError
from broker.messages import Message, Position

Found = tuple[Position, float, Message | DecodeError]


class Prompts:
    """The prompts of all partitions by the time at which the log took them, however the reader interleaves partitions.

    What is read of a partition beyond the time that was asked for is kept, and no partition is read on while such a record of it is there
    and the others have theirs: what is held is bounded by how far the reader runs ahead in one partition.
    """

    def __init__(self, found: Iterator[Found], begins: Mapping[int, int], ends: Mapping[int, int]) -> None:
        self._found, self._read, self._ends = found, dict(begins), dict(ends)
        self._held: list[tuple[float, int, Found]] = []
        self._holding: Counter[int] = Counter()
        self._newest: dict[int, float] = {}
        self._count = 0

    def next(self, until: float) -> Found | None:
        """The oldest prompt that was not returned yet; None if there is none up to ``until``."""
        while not self._is_complete():
            found = next(self._found, None)
            if found is None:
                break
            position, at, _ = found
            self._read[position.partition] = position.offset + 1
            at = max(at, self._newest.get(position.partition, at))  # a clock that was set back changes no order
            self._newest[position.partition] = at
            self._count += 1
            heapq.heappush(self._held, (at, self._count, found))
            self._holding[position.partition] += 1
        if not self._held or self._held[0][0] > until:
            return None
        _, _, found = heapq.heappop(self._held)
        self._holding[found[0].partition] -= 1
        return found

    def _is_complete(self) -> bool:
        """Whether nothing older than what is held can come any more: each partition has a record here, or is at its end."""
        return all(self._holding[p] > 0 or self._read.get(p, 0) >= end for p, end in self._ends.items())
