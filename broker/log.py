"""The protocols of the log: topic, producer, consumer and reader, whichever engine keeps the records.

Delivery is at least once: consume, handle, publish, flush, then commit the contiguous low watermark. Two engines:
``sqlite://DIRECTORY`` (one machine, no daemon) and ``kafka://HOST:PORT`` behind the same protocols and contract suite; ``broker.open``
chooses between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from broker.messages import Position

DEAD_BYTES = 1 << 15  # what a dead letter may add to the record that it holds
First = Callable[[str], Mapping[int, int]]
"""By partition of a topic the first offset that matters to a group which has not committed any; those not named begin at the oldest record."""


class Record(NamedTuple):
    """One record of a topic. ``timestamp`` is when the log took it, in seconds since the epoch."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    timestamp: float

    @property
    def position(self) -> Position:
        return Position(self.partition, self.offset)


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """The specification of a topic. Retention never silently removes what a group has yet to commit: readers get OffsetExpired.

    ``compacted`` keeps the newest record of a key only. ``retention_seconds`` and ``retention_bytes`` 0 mean for ever.
    """

    name: str
    partitions: int = 1
    compacted: bool = False
    retention_seconds: float = 0.0
    retention_bytes: int = 0


class Producer(Protocol):
    """Appends records. Not shared between threads. What was not flushed may be lost; what was flushed is durable."""

    def send(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        """Queue one record; without ``partition`` it follows from the key (``partition_of``). Blocks at the bound of bytes in flight.

        Raises LogError if the topic or partition does not exist or the value is above ``max_bytes``.
        """

    def flush(self) -> list[Position]:
        """Make all that was sent durable, atomically for one topic, and return the positions in order of sending.

        Raises LogUnavailable, LogFull; HeldByAnother if this producer is exclusive and has been fenced.
        """

    def close(self) -> None: ...


class Consumer(Protocol):
    """A member of a consumer group: shares the partitions of its topics with the other live members."""

    def poll(self, max_records: int = 64, timeout: float = 0.0) -> list[Record]:
        """Next records of the partitions this member holds, in order within a partition; keeps the membership alive.

        A member that restarts, or gets a partition from another, begins at the committed offset (the oldest one when
        there is none). Must be called at least every few seconds, with ``max_records=0`` while it has enough work.
        """

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Everything below ``offsets[topic, partition]`` is done. Partitions that this member has lost are left out silently."""

    def assignment(self) -> frozenset[tuple[str, int]]:
        """The (topic, partition) pairs that this member holds now."""

    def close(self) -> None:
        """Leave the group at once, so that others take over without waiting for the lease to end."""


class Reader(Protocol):
    """Reads one topic from positions of its own choosing, in no group."""

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Go on from these offsets (of the partitions named; the others stay)."""

    def poll(self, max_records: int = 256, timeout: float = 0.0) -> list[Record]:
        """Next records of all partitions. Raises OffsetExpired if a position is no longer there."""

    def get(self, positions: Sequence[Position]) -> list[Record]:
        """The records at exactly these positions, in this order; moves nothing. Raises OffsetExpired or LogError."""

    def offsets(self) -> dict[int, int]:
        """The next offset of every partition."""

    def close(self) -> None: ...


class Log(Protocol):
    """A durable, replayable set of topics, opened by every process for itself (never shared through a fork)."""

    def create(self, specs: Iterable[TopicSpec]) -> None:
        """Make the topics that are missing. Raises LogError where one exists with settings that would lose data."""

    def topics(self) -> dict[str, TopicSpec]: ...

    def producer(self) -> Producer: ...

    def exclusive_producer(self, name: str, owner: str) -> Producer:
        """A producer that only one live process may hold under this ``name``. Raises HeldByAnother with the holder's ``owner``."""

    def consumer(self, topics: Sequence[str], group: str, member: str, first: First | None = None) -> Consumer:
        """Join ``group``; ``member`` is a static name, so that a restarted process takes its place back at once.

        Where the group has no committed offset (it is new, or the log has forgotten it), it begins at ``first``.
        """

    def reader(self, topic: str, offsets: Mapping[int, int] | None = None) -> Reader:
        """A reader from ``offsets``; partitions not named begin at their oldest record."""

    def begins(self, topic: str) -> dict[int, int]:
        """Oldest offset of each partition that is still there."""

    def ends(self, topic: str) -> dict[int, int]:
        """Offset that the next record of each partition will have."""

    def committed(self, group: str, topic: str) -> dict[int, int]: ...

    def groups(self) -> dict[str, tuple[str, ...]]:
        """The consumer groups that have ever committed or joined, with the topics of each."""

    def lag(self, group: str, topic: str) -> int:
        """Number of records after the group's committed offsets."""

    def delete(self, topics: Iterable[str], groups: Iterable[str]) -> None:
        """Remove topics and consumer groups whole; those that are not there are no error. Raises LogError while a group has members."""

    def trim(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Remove everything below these offsets."""

    def close(self) -> None: ...


def limit_of(topic: str, most: int) -> int:
    """The largest value that ``topic`` takes where records have at most ``most`` bytes: a dead letter holds one, and the reason."""
    return most + DEAD_BYTES if topic.endswith(".deadletters") else most


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key: FNV-1a (32 bit) modulo the number of partitions, the same in every language."""
    digest = 0x811C9DC5
    for byte in key:
        digest = ((digest ^ byte) * 0x01000193) & 0xFFFFFFFF
    return digest % partitions
