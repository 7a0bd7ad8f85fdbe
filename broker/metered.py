"""Wraps a log and measures its use by this process: bytes in and out, failed appends, and the age of the oldest unfinished record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.errors import HeadraceError
from broker.log import Consumer, First, Log, Producer, Reader, Record
from broker.messages import Position
from monitoring.metrics import BrokerMetrics


class MeteredProducer:
    """A ``Producer`` whose bytes and failures are counted. ``dead`` is the topic of dead letters."""

    def __init__(self, producer: Producer, metrics: BrokerMetrics, dead: str) -> None:
        self._producer, self._metrics, self._dead = producer, metrics, dead
        self._topics: dict[str, None] = {}  # topics sent to since the last flush

    def send(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        try:
            self._producer.send(topic, key, value, partition)
        except HeadraceError as error:
            self._failed(topic, error)
            raise
        self._topics[topic] = None
        self._metrics.bytes_out.inc(len(value))
        if topic == self._dead:
            self._metrics.dead_letters.inc()

    def flush(self) -> list[Position]:
        try:
            found = self._producer.flush()
        except HeadraceError as error:
            for topic in self._topics:
                self._failed(topic, error)
            raise
        self._topics.clear()
        return found

    def close(self) -> None:
        self._producer.close()

    def _failed(self, topic: str, error: HeadraceError) -> None:
        self._metrics.produce_errors(topic, type(error).__name__).inc()


class MeteredConsumer:
    """A ``Consumer`` that reports the age of the oldest record that it has taken and not committed."""

    def __init__(self, consumer: Consumer, metrics: BrokerMetrics, topics: Sequence[str]) -> None:
        self._consumer, self._metrics = consumer, metrics
        self._open: dict[tuple[str, int], dict[int, float]] = {}
        for topic in topics:
            metrics.track_oldest(topic, lambda topic=topic: self._oldest(topic))  # type: ignore[misc]

    def poll(self, max_records: int = 64, timeout: float = 0.0) -> list[Record]:
        records = self._consumer.poll(max_records, timeout)
        for record in records:
            self._open.setdefault((record.topic, record.partition), {})[record.offset] = record.timestamp
            self._metrics.bytes_in.inc(len(record.value))
        return records

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        self._consumer.commit(offsets)
        for place, offset in offsets.items():
            waiting = self._open.get(place, {})
            for done in [taken for taken in waiting if taken < offset]:
                del waiting[done]

    def assignment(self) -> frozenset[tuple[str, int]]:
        held = self._consumer.assignment()
        for place in [p for p in self._open if p not in held]:  # another member has these partitions now
            del self._open[place]
        return held

    def close(self) -> None:
        self._consumer.close()
        self._open.clear()

    def _oldest(self, topic: str) -> float:
        """The log timestamp of the oldest open record of ``topic``; infinity if there is none. Called on the exporter's thread."""
        places = list(self._open.items())
        return min(
            (at for (name, _), waiting in places if name == topic for at in list(waiting.values())),
            default=float("inf"),
        )


class MeteredReader:
    """A ``Reader`` whose bytes are counted."""

    def __init__(self, reader: Reader, metrics: BrokerMetrics) -> None:
        self._reader, self._metrics = reader, metrics

    def seek(self, offsets: Mapping[int, int]) -> None:
        self._reader.seek(offsets)

    def poll(self, max_records: int = 256, timeout: float = 0.0) -> list[Record]:
        return self._count(self._reader.poll(max_records, timeout))

    def get(self, positions: Sequence[Position]) -> list[Record]:
        return self._count(self._reader.get(positions))

    def _count(self, records: list[Record]) -> list[Record]:
        self._metrics.bytes_in.inc(sum(len(record.value) for record in records))
        return records

    def offsets(self) -> dict[int, int]:
        return self._reader.offsets()

    def close(self) -> None:
        self._reader.close()


class MeteredLog:
    """``log``, with its use counted in ``metrics``. Groups without committed offsets begin at ``first``."""

    def __init__(self, log: Log, metrics: BrokerMetrics, dead: str, first: First | None = None) -> None:
        self._log, self._metrics, self._dead, self._first = log, metrics, dead, first
        self.create, self.topics, self.begins, self.ends = log.create, log.topics, log.begins, log.ends
        self.committed, self.groups, self.lag = log.committed, log.groups, log.lag
        self.trim, self.delete, self.close = log.trim, log.delete, log.close

    def producer(self) -> Producer:
        return MeteredProducer(self._log.producer(), self._metrics, self._dead)

    def exclusive_producer(self, name: str, owner: str) -> Producer:
        return MeteredProducer(self._log.exclusive_producer(name, owner), self._metrics, self._dead)

    def consumer(self, topics: Sequence[str], group: str, member: str, first: First | None = None) -> Consumer:
        return MeteredConsumer(self._log.consumer(topics, group, member, first or self._first), self._metrics, topics)

    def reader(self, topic: str, offsets: Mapping[int, int] | None = None) -> Reader:
        return MeteredReader(self._log.reader(topic, offsets), self._metrics)
