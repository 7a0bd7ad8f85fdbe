"""Reads a run's records from its log: what progress, summary, verify, trace and report are made of."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing

from broker.errors import DecodeError, LogUnavailable
from broker.log import Log, Record
from broker.messages import Message, decode

PATIENCE_SECONDS = 15.0


def scan(
    log: Log, topic: str, starts: Mapping[int, int] | None = None, until: float = math.inf
) -> Iterator[tuple[Record, Message | DecodeError]]:
    """Every record of ``topic`` that is there now, partition by partition in order, decoded or with the error.

    ``starts`` are the offsets to begin at (where the records before them are still there); a partition ends with its first
    record that the log took after ``until``, in seconds since the epoch.
    """
    begins = log.begins(topic)
    found = {p: max(offset, begins.get(p, 0)) for p, offset in (starts or {}).items()}
    yield from _between(log, topic, found, log.ends(topic), until)


def newest(log: Log, topic: str) -> Message | DecodeError | None:
    """The last record of a topic of one partition; None if it is empty."""
    end, begin = log.ends(topic)[0], log.begins(topic)[0]
    start, step = end, 8  # the last offsets may hold no record: a distributed log marks its transactions there
    while start > begin:
        start, step = max(begin, start - step), step * 8
        found = [message for _, message in _between(log, topic, {0: start}, {0: end})]
        if found:
            return found[-1]
    return None


def last(log: Log, topic: str, count: int) -> list[Message | DecodeError]:
    """The newest records of a topic of one partition, about ``count`` of them, in order."""
    end, begin = log.ends(topic)[0], log.begins(topic)[0]
    return [message for _, message in _between(log, topic, {0: max(begin, end - count)}, {0: end})]


def _between(
    log: Log, topic: str, starts: Mapping[int, int], ends: dict[int, int], until: float = math.inf
) -> Iterator[tuple[Record, Message | DecodeError]]:
    with closing(log.reader(topic, starts)) as reader:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(offset < ends[p] for p, offset in reader.offsets().items()):
            records = reader.poll(1024, 0.2)
            if records:
                deadline = time.monotonic() + PATIENCE_SECONDS
            elif time.monotonic() > deadline:
                raise LogUnavailable(f"{topic} gave nothing for {PATIENCE_SECONDS:.0f} s though there is more")
            for record in records:
                if record.timestamp > until:
                    ends[record.partition] = min(ends[record.partition], record.offset)
                if record.offset < ends[record.partition]:
                    yield record, read(record)


def read(record: Record) -> Message | DecodeError:
    try:
        return decode(record.value)
    except DecodeError as error:
        return error
