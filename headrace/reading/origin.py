"""Tells where a run was forked from, if it was: the first record of its steps says so."""

from __future__ import annotations

from broker.log import Log
from broker.messages import Manifest, Origin
from broker.topics import Topics
from headrace.reading.records import read, records


def origin_of(log: Log, topics: Topics) -> Origin | None:
    """The run and the step that this one begins from; None if it began by itself."""
    for record in records(log, topics.steps, batch=1):
        message = read(record)
        return message.origin if isinstance(message, Manifest) else None
    return None


def told(origin: Origin) -> str:
    """The same in words."""
    return f"{origin.run} at step {origin.step} ({origin.where})"
