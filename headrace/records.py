"""Reads a run's records from its log: what progress, summary, verify, trace and report are made of."""

from __future__ import annotations

from collections.abc import Iterator

from broker.errors import DecodeError
from broker.log import Log, Record
from broker.messages import Message, decode


def scan(log: Log, topic: str) -> Iterator[tuple[Record, Message | DecodeError]]:
    """Every record of ``topic`` that is there now, partition by partition in order, decoded or with the error."""
    reader = log.reader(topic)
    ends = log.ends(topic)
    try:
        while any(offset < ends[p] for p, offset in reader.offsets().items()):
            records = reader.poll(1024, 0.2)
            if not records:
                return
            for record in records:
                if record.offset < ends[record.partition]:
                    yield record, read(record)
    finally:
        reader.close()


def read(record: Record) -> Message | DecodeError:
    try:
        return decode(record.value)
    except DecodeError as error:
        return error
