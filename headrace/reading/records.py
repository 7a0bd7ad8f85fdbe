"""Reads a run's records from its log, for progress, summary, verify, trace and report."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing

from broker.errors import DecodeError, LogUnavailable
from broker.log import Log, Record
from broker.messages import Message, Position, decode

PATIENCE_SECONDS = 15.0
BATCH = 1024
FIRST_REACH = (
    8  # offsets that a look at the end of a partition begins with; each further one reaches eight times as far
)


def scan(
    log: Log, topic: str, starts: Mapping[int, int] | None = None, until: float = math.inf
) -> Iterator[tuple[Record, Message | DecodeError]]:
    """Every record of ``topic`` that is there now, partition by partition in order, decoded or with the error.

    ``starts`` are the offsets to begin at (where the records before them are still there); a partition ends with its first
    record that the log took after ``until``, in seconds since the epoch.
    """
    for record in records(log, topic, starts, until=until):
        yield record, read(record)


def records(
    log: Log,
    topic: str,
    starts: Mapping[int, int] | None = None,
    ends: Mapping[int, int] | None = None,
    until: float = math.inf,
    batch: int = BATCH,
) -> Iterator[Record]:
    """As ``scan``, undecoded; ``ends`` are the offsets to stop at (default: where the partitions end now), ``batch`` how many are fetched at once."""
    begins = log.begins(topic)
    found = {p: max(offset, begins.get(p, 0)) for p, offset in (starts or {}).items()}
    yield from _between(log, topic, found, dict(log.ends(topic) if ends is None else ends), until, batch)


def at(log: Log, topic: str, offsets: Iterable[int]) -> Iterator[Message | DecodeError]:
    """The messages at these offsets of a topic of one partition. Raises OffsetExpired or LogError where there is none."""
    with closing(log.reader(topic)) as reader:
        for offset in offsets:
            yield read(reader.get([Position(0, offset)])[0])


def first(log: Log, topic: str) -> Record | None:
    """The oldest record of a topic of one partition that is still there."""
    return next(records(log, topic, batch=1), None)


def newest(log: Log, topic: str, count: int = 1) -> list[tuple[Record, Message | DecodeError]]:
    """The last ``count`` records that the log took of ``topic``, the newest one last; only the ends of its partitions are read."""
    begins, ends = log.begins(topic), log.ends(topic)
    found = [r for p, end in ends.items() for r in _last(log, topic, p, begins[p], end, count)]
    found.sort(key=lambda r: (r.timestamp, r.partition, r.offset))
    return [(record, read(record)) for record in found[-count:]]


def _last(log: Log, topic: str, partition: int, begin: int, end: int, count: int) -> list[Record]:
    """The last ``count`` records of a partition. Offsets may hold no record: a distributed log marks its transactions there."""
    start, reach, found = end, max(FIRST_REACH, count), list[Record]()
    everywhere = log.ends(topic)
    while start > begin and len(found) < count:
        start, reach = max(begin, start - reach), reach * FIRST_REACH
        starts = {**everywhere, partition: start}
        found = list(_between(log, topic, starts, {**everywhere, partition: end}))
    return found[-count:]


def _between(
    log: Log, topic: str, starts: Mapping[int, int], ends: dict[int, int], until: float = math.inf, batch: int = BATCH
) -> Iterator[Record]:
    with closing(log.reader(topic, starts)) as reader:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(offset < ends[p] for p, offset in reader.offsets().items()):
            found = reader.poll(batch, 0.2)
            if found:
                deadline = time.monotonic() + PATIENCE_SECONDS
            elif time.monotonic() > deadline:
                raise LogUnavailable(f"{topic} gave nothing for {PATIENCE_SECONDS:.0f} s though there is more")
            for record in found:
                if record.timestamp > until:
                    ends[record.partition] = min(ends[record.partition], record.offset)
                if record.offset < ends[record.partition]:
                    yield record


def read(record: Record) -> Message | DecodeError:
    try:
        return decode(record.value)
    except DecodeError as error:
        return error
