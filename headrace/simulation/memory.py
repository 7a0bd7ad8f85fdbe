"""A log in the memory of one process, in simulated time; nothing is written to disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from broker.errors import LogError
from broker.log import First, Record, TopicSpec, partition_of
from broker.messages import Position

Records = list[list[Record]]  # by partition


class MemoryLog:
    """Implements ``broker.log.Log``. ``written`` and ``read`` count the bytes of values by topic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.heard: Callable[[str], None] = lambda topic: None
        """Told the topic of every record that is written."""
        self.records: dict[str, Records] = {}
        self.written, self.taken = Counter[str](), Counter[str]()
        self._specs: dict[str, TopicSpec] = {}
        self.members: dict[str, list[str]] = {}
        self.done: dict[tuple[str, str], dict[int, int]] = {}

    def create(self, specs: Iterable[TopicSpec]) -> None:
        for spec in specs:
            self._specs.setdefault(spec.name, spec)
            self.records.setdefault(spec.name, [[] for _ in range(spec.partitions)])

    def topics(self) -> dict[str, TopicSpec]:
        return dict(self._specs)

    def of(self, topic: str) -> Records:
        if topic not in self.records:
            raise LogError(f"there is no topic {topic}")
        return self.records[topic]

    def producer(self) -> MemoryProducer:
        return MemoryProducer(self)

    def exclusive_producer(self, name: str, owner: str) -> MemoryProducer:
        return MemoryProducer(self)  # there is one process

    def consumer(self, topics: Sequence[str], group: str, member: str, first: First | None = None) -> MemoryConsumer:
        self.members.setdefault(group, []).append(member)
        return MemoryConsumer(self, topics, group, member)

    def reader(self, topic: str, offsets: Mapping[int, int] | None = None) -> MemoryReader:
        return MemoryReader(self, topic, offsets)

    def begins(self, topic: str) -> dict[int, int]:
        return dict.fromkeys(range(len(self.of(topic))), 0)

    def ends(self, topic: str) -> dict[int, int]:
        return {p: len(found) for p, found in enumerate(self.of(topic))}

    def committed(self, group: str, topic: str) -> dict[int, int]:
        return dict(self.done.get((group, topic), {}))

    def groups(self) -> dict[str, tuple[str, ...]]:
        return {group: tuple(t for g, t in self.done if g == group) for group in self.members}

    def lag(self, group: str, topic: str) -> int:
        return sum(self.ends(topic).values()) - sum(self.committed(group, topic).values())

    def delete(self, topics: Iterable[str], groups: Iterable[str]) -> None:
        for topic in topics:
            self.records.pop(topic, None)
            self._specs.pop(topic, None)
        for group in groups:
            self.members.pop(group, None)

    def trim(self, topic: str, offsets: Mapping[int, int]) -> None:
        raise LogError("a simulated log keeps everything")

    def close(self) -> None:
        """Nothing is held open."""


class MemoryProducer:
    def __init__(self, log: MemoryLog) -> None:
        self._log, self._sent = log, list[Position]()

    def send(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        found = self._log.of(topic)
        at = partition_of(key, len(found)) if partition is None else partition
        record = Record(topic, at, len(found[at]), key, value, self._log.clock())
        found[at].append(record)
        self._log.written[topic] += len(value)
        self._sent.append(record.position)
        self._log.heard(topic)

    def flush(self) -> list[Position]:
        sent, self._sent = self._sent, []
        return sent

    def close(self) -> None:
        """Nothing is held open."""


class MemoryReader:
    def __init__(self, log: MemoryLog, topic: str, offsets: Mapping[int, int] | None = None) -> None:
        self._log, self._topic = log, topic
        self._at = log.begins(topic) | dict(offsets or {})

    def seek(self, offsets: Mapping[int, int]) -> None:
        self._at |= offsets

    def poll(self, max_records: int = 256, timeout: float = 0.0) -> list[Record]:
        out = list[Record]()
        for partition, records in enumerate(self._log.of(self._topic)):
            found = records[self._at[partition] : self._at[partition] + max_records - len(out)]
            self._at[partition] += len(found)
            out += found
        self._log.taken[self._topic] += sum(len(r.value) for r in out)
        return out

    def get(self, positions: Sequence[Position]) -> list[Record]:
        return [self._log.of(self._topic)[p.partition][p.offset] for p in positions]

    def offsets(self) -> dict[int, int]:
        return dict(self._at)

    def close(self) -> None:
        """Nothing is held open."""


class MemoryConsumer:
    """The members of a group share the partitions in the order of their names, each the same ones for ever."""

    def __init__(self, log: MemoryLog, topics: Sequence[str], group: str, member: str) -> None:
        self._log, self._topics, self._group, self._member = log, tuple(topics), group, member
        self._at: dict[tuple[str, int], int] = {}

    def assignment(self) -> frozenset[tuple[str, int]]:
        members = sorted(self._log.members[self._group])
        mine, count = members.index(self._member), len(members)
        return frozenset((t, p) for t in self._topics for p in range(len(self._log.of(t))) if p % count == mine)

    def poll(self, max_records: int = 64, timeout: float = 0.0) -> list[Record]:
        """The oldest first, as they were fed: a real consumer goes round its partitions."""
        waiting = [self._log.of(t)[p][self._at.get((t, p), 0) :][:max_records] for t, p in sorted(self.assignment())]
        found = sorted((r for records in waiting for r in records), key=lambda r: r.timestamp)[:max_records]
        for record in found:
            place = record.topic, record.partition
            self._at[place] = max(self._at.get(place, 0), record.offset + 1)
            self._log.taken[record.topic] += len(record.value)
        return found

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        for (topic, partition), offset in offsets.items():
            self._log.done.setdefault((self._group, topic), {})[partition] = offset

    def close(self) -> None:
        self._log.members[self._group].remove(self._member)
