"""A reader that keeps its own positions and belongs to no consumer group."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from broker.errors import LogError, LogUnavailable, OffsetExpired
from broker.kafka.faults import away, translated
from broker.kafka.opening import closed_on_failure, opened
from broker.kafka.settings import KafkaSettings
from broker.log import Record
from broker.messages import Position

PROBE_SECONDS = 3.0  # after this long without records, check whether any broker can be reached
GET_SECONDS = 20.0  # how long to wait for one exact position
EXACT_BYTES = 1 << 16  # fetch size for exact positions; a broker returns at least one batch, however large
SKIP_BYTES = 1 << 17  # gaps up to this size are read through; larger ones are skipped by seeking


def consumer_settings(settings: KafkaSettings) -> dict[str, Any]:
    """Settings of all consumers: never jump silently to another offset, read only committed records, allow records of full size."""
    return {
        **settings.common,
        "metrics_enabled": False,
        "auto_offset_reset": "none",
        "enable_auto_commit": False,
        "isolation_level": "read_committed",
        "max_partition_fetch_bytes": settings.max_record_bytes + (1 << 16),
        "fetch_max_bytes": 4 * settings.max_record_bytes,
        "allow_auto_create_topics": False,
    }


class Silence:
    """Notices that a cluster is away: the Kafka client would wait for it without an error."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._since = time.monotonic()

    def heard(self) -> None:
        self._since = time.monotonic()

    def check(self, client: Any) -> None:
        """Raises LogUnavailable if nothing arrived for ``PROBE_SECONDS`` and no broker accepts connections."""
        if time.monotonic() - self._since > PROBE_SECONDS:
            if why := away(self._settings.servers, client):
                raise LogUnavailable(why)
            self.heard()


def record_of(it: Any) -> Record:
    return Record(it.topic, it.partition, it.offset, it.key or b"", it.value or b"", it.timestamp / 1000)


class LogReader:
    """Implements ``broker.log.Reader``. ``begins`` and ``ends`` ask the cluster for the bounds of the topic."""

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        offsets: Mapping[int, int],
        begins: Callable[[], dict[int, int]],
        ends: Callable[[], dict[int, int]],
    ) -> None:
        self._settings, self._topic, self._begins, self._ends = settings, topic, begins, ends
        self._silence = Silence(settings)
        first = {**begins(), **offsets}
        self._next = first
        self._consumer = self._open(first)
        self._exact: KafkaConsumer | None = None
        self._known_ends: dict[int, int] = {}

    def _open(self, offsets: Mapping[int, int], **more: int) -> KafkaConsumer:
        with translated(f"reading {self._topic}"):
            consumer = opened(KafkaConsumer, **{**consumer_settings(self._settings), **more})
            with closed_on_failure(consumer):
                consumer.assign([self._part(p) for p in offsets])
                for partition, offset in offsets.items():
                    consumer.seek(self._part(partition), offset)
        return consumer

    def _part(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)

    def seek(self, offsets: Mapping[int, int]) -> None:
        for partition, offset in offsets.items():
            self._consumer.seek(self._part(partition), offset)
            self._next[partition] = offset

    def poll(self, max_records: int = 256, timeout: float = 0.0) -> list[Record]:
        try:
            with translated(f"reading {self._topic}"):
                batches = self._consumer.poll(int(timeout * 1000), max(1, max_records))
        except LogError as error:
            raise self._expired(self._next) or error from error
        records = [record_of(r) for batch in batches.values() for r in batch]
        for record in records:
            self._next[record.partition] = record.offset + 1
        if records:
            self._silence.heard()
        else:
            self._silence.check(self._consumer)
        return records

    def _expired(self, offsets: Mapping[int, int]) -> OffsetExpired | None:
        """An error for the first of ``offsets`` that retention has removed; None if all are still there."""
        begins = self._begins()
        for partition, offset in offsets.items():
            if offset < begins.get(partition, 0):
                return OffsetExpired(self._topic, partition, offset, begins[partition])
        return None

    def get(self, positions: Sequence[Position]) -> list[Record]:
        wanted: dict[int, set[int]] = {}
        for partition, offset in positions:
            wanted.setdefault(partition, set()).add(offset)
        if any(max(offsets) >= self._known_ends.get(p, 0) for p, offsets in wanted.items()):
            self._known_ends = self._ends()
        for partition, offsets in wanted.items():
            if max(offsets) >= self._known_ends.get(partition, 0):
                raise LogError(f"{self._topic}[{partition}] has no offset {max(offsets)}")
        if self._exact is None:
            self._exact = self._open({}, max_partition_fetch_bytes=EXACT_BYTES, fetch_max_bytes=EXACT_BYTES)
        found: dict[Position, Record] = {}
        for partition, offsets in wanted.items():
            self._fetch(self._exact, partition, offsets, found)
        return [found[Position(*p)] for p in positions]

    def _fetch(self, consumer: KafkaConsumer, partition: int, offsets: set[int], found: dict[Position, Record]) -> None:
        """Add the records at ``offsets`` of one partition to ``found``, seeking over long gaps. Raises LogError or LogUnavailable."""
        part = self._part(partition)
        left = sorted(offsets, reverse=True)
        consumer.assign([part])
        at = left[-1]
        consumer.seek(part, at)
        size = 1 << 10  # largest record seen so far, in bytes
        deadline = time.monotonic() + GET_SECONDS
        while left:
            if (left[-1] - at) * size > SKIP_BYTES:
                at = left[-1]
                consumer.seek(part, at)
            try:
                with translated(f"reading {self._topic}[{partition}]"):
                    batch = consumer.poll(500, 500).get(part, [])
            except LogError as error:
                raise self._expired({partition: left[-1]}) or error from error
            for it in batch:
                at, size = it.offset + 1, max(size, len(it.value or b""))
                if left and it.offset == left[-1]:
                    found[Position(partition, left.pop())] = record_of(it)
                    deadline = time.monotonic() + GET_SECONDS
                elif left and it.offset > left[-1]:
                    raise LogError(f"{self._topic}[{partition}] has no record at offset {left[-1]}")
            if not batch and time.monotonic() > deadline:
                raise LogUnavailable(
                    f"{self._topic}[{partition}] offset {left[-1]} did not come within {GET_SECONDS:.0f} s"
                )

    def offsets(self) -> dict[int, int]:
        """The next offset of every partition, after any transaction markers that were passed."""
        with translated(f"reading {self._topic}"):
            for partition, offset in self._next.items():
                self._next[partition] = max(offset, self._consumer.position(self._part(partition), 0) or 0)
        return dict(self._next)

    def close(self) -> None:
        for consumer in (self._consumer, self._exact):
            if consumer is not None:
                with translated("closing a reader"):
                    consumer.close(timeout_ms=500)
