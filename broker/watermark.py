"""The contiguous low watermark: work is finished out of order, but only what has no gap below it is committed."""

from __future__ import annotations

from collections.abc import Iterable

from broker.log import Consumer, Record

Part = tuple[str, int]


class Watermark:
    """Tracks, for each (topic, partition), the records taken and those done."""

    def __init__(self) -> None:
        self._open: dict[Part, dict[int, bool]] = {}
        self._next: dict[Part, int] = {}
        self.dirty = False
        """Whether any record was done since the last commit that succeeded."""

    def start(self, record: Record) -> None:
        """``record`` was taken from the consumer."""
        part = (record.topic, record.partition)
        self._open.setdefault(part, {})[record.offset] = False
        self._next[part] = max(self._next.get(part, 0), record.offset + 1)

    def done(self, record: Record) -> None:
        """``record`` was handled, and its results are durable. Unknown records (revoked meanwhile) are ignored."""
        part = (record.topic, record.partition)
        if record.offset in self._open.get(part, {}):
            self._open[part][record.offset] = self.dirty = True

    def offsets(self) -> dict[Part, int]:
        """For each partition, the offset below which everything is done."""
        low: dict[Part, int] = {}
        for part, taken in self._open.items():
            waiting = [offset for offset, done in taken.items() if not done]
            low[part] = min(waiting, default=self._next[part])
            for offset in [o for o in taken if o < low[part]]:
                del taken[offset]
        return low

    def commit(self, consumer: Consumer) -> None:
        """Commit what was done; what could not be committed is left for the next call."""
        if self.dirty:
            consumer.commit(self.offsets())
            self.dirty = False

    def pending(self) -> int:
        return sum(not done for taken in self._open.values() for done in taken.values())

    def keep(self, assignment: Iterable[Part]) -> None:
        """Forget the partitions that are no longer held."""
        held = set(assignment)
        for part in [p for p in self._open if p not in held]:
            del self._open[part], self._next[part]
