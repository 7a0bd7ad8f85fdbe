"""The protocols of the log: topic, producer, consumer and reader, for every engine.

Delivery is at least once: consume, handle, publish, flush, then commit the contiguous low watermark. Two engines:
``sqlite://DIRECTORY`` (one machine, no daemon) and ``kafka://HOST:PORT`` behind the same protocols and contract suite; ``broker.open``
chooses between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from broker.messages import Position

DEAD_BYTES = 1 << 15  # bytes that a dead letter may add to the record that it holds
First = Callable[[str], Mapping[int, int]]
"""For a topic, the first offset of each partition that a group without committed offsets needs; others begin at the oldest record."""


class Record(NamedTuple):
    """One record of a topic. ``timestamp`` is when the log received it, in seconds since the epoch."""

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
    """The specification of a topic. If retention removes records that a group has not read, reading raises OffsetExpired.

    ``compacted`` keeps only the newest record of each key. ``retention_seconds`` and ``retention_bytes`` 0 mean for ever.
    """

    name: str
    partitions: int = 1
    compacted: bool = False
    retention_seconds: float = 0.0
    retention_bytes: int = 0


class Producer(Protocol):
    """Appends records. Not thread-safe. Flushed records are durable; others may be lost."""

    def send(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        """Queue one record. Without ``partition`` the key decides (``partition_of``). Blocks at the limit of bytes in flight.

        Raises LogError if the topic or partition does not exist, RecordTooLarge if the value is above ``max_bytes``.
        """

    def flush(self) -> list[Position]:
        """Make all sent records durable, atomically for one topic; returns their positions in order of sending.

        Raises LogUnavailable, LogFull; HeldByAnother if this producer is exclusive and has been fenced.
        """

    def close(self) -> None: ...


class Consumer(Protocol):
    """A member of a consumer group: shares the partitions of its topics with the other live members."""

    def poll(self, max_records: int = 64, timeout: float = 0.0) -> list[Record]:
        """Next records of the partitions this member holds, in order within a partition; keeps the membership alive.

        A member that restarts, or gets a partition from another, begins at the committed offset (the oldest one when
        there is none). Must be called at least every few seconds, with ``max_records=0`` while it has enough work.
        Raises MemberReplaced, each time, once a newer process has joined under this member's name.
        """

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Record that everything below ``offsets[topic, partition]`` is done. Partitions that this member has lost are ignored."""

    def assignment(self) -> frozenset[tuple[str, int]]:
        """The (topic, partition) pairs that this member holds now."""

    def close(self) -> None:
        """Leave the group at once, so that others take over without waiting for the lease to end."""


class Reader(Protocol):
    """Reads one topic from positions of its own choice, outside any group."""

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Continue from these offsets; partitions not named keep their position."""

    def poll(self, max_records: int = 256, timeout: float = 0.0) -> list[Record]:
        """Next records of all partitions. Raises OffsetExpired if a position is no longer there."""

    def get(self, positions: Sequence[Position]) -> list[Record]:
        """The records at exactly these positions, in this order; does not move the reader. Raises OffsetExpired or LogError."""

    def offsets(self) -> dict[int, int]:
        """The next offset of every partition."""

    def close(self) -> None: ...


class Log(Protocol):
    """A durable, replayable set of topics. Every process opens its own; it must not be used across a fork."""

    def create(self, specs: Iterable[TopicSpec]) -> None:
        """Create missing topics. Raises LogError if one exists with settings that would lose data."""

    def topics(self) -> dict[str, TopicSpec]: ...

    def producer(self) -> Producer: ...

    def exclusive_producer(self, name: str, owner: str) -> Producer:
        """A producer that only one live process may hold under this ``name``. Raises HeldByAnother with the holder's ``owner``."""

    def consumer(self, topics: Sequence[str], group: str, member: str, first: First | None = None) -> Consumer:
        """Join ``group``; ``member`` is a static name, so that a restarted process regains its place at once.

        Where the group has no committed offset (it is new, or the log has forgotten it), it begins at ``first``.
        """

    def reader(self, topic: str, offsets: Mapping[int, int] | None = None) -> Reader:
        """A reader from ``offsets``; partitions not named begin at their oldest record."""

    def begins(self, topic: str) -> dict[int, int]:
        """The offset of the oldest record still in each partition."""

    def ends(self, topic: str) -> dict[int, int]:
        """Offset that the next record of each partition will have."""

    def committed(self, group: str, topic: str) -> dict[int, int]: ...

    def groups(self) -> dict[str, tuple[str, ...]]:
        """The consumer groups that have ever committed or joined, with the topics of each."""

    def lag(self, group: str, topic: str) -> int:
        """Number of records after the group's committed offsets."""

    def delete(self, topics: Iterable[str], groups: Iterable[str]) -> None:
        """Remove whole topics and consumer groups; missing ones are ignored. Raises LogError if a group has members."""

    def trim(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Remove everything below these offsets."""

    def close(self) -> None: ...


def limit_of(topic: str, most: int) -> int:
    """The largest value in bytes for ``topic`` if records have at most ``most``: a dead letter holds a record and the reason."""
    return most + DEAD_BYTES if topic.endswith(".deadletters") else most


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key: FNV-1a (32 bit) modulo the number of partitions, the same in every language."""
    digest = 0x811C9DC5
    for byte in key:
        digest = ((digest ^ byte) * 0x01000193) & 0xFFFFFFFF
    return digest % partitions
