"""The first fields of a record of the ``steps`` topic, read without the rest of it.

A manifest names the log positions of every sample and vote of its step; most readers want to know only that it is there.
"""

from __future__ import annotations

from typing import NamedTuple

import msgpack

from broker.errors import DecodeError
from broker.log import Record
from broker.messages import Artefact, Evaluation, Manifest, StepResult, decode

HEAD_BYTES = 512  # holds the first three fields, unless a name is long
_KINDS = {
    ("step", "stage", "kind"): Manifest.TYPE, ("step", "stage", "stage_step"): StepResult.TYPE,
    ("name", "step", "stage"): Evaluation.TYPE, ("name", "stage", "step"): Artefact.TYPE,
}  # fmt: skip
"""The type of a record by the names of its first three fields, which are those that ``pack`` of the type begins with."""


class Head(NamedTuple):
    """The first fields of a record. ``kind`` is that of a manifest, ``name`` that of a record that ends a collection."""

    type: str
    offset: int
    at: float
    step: int = 0
    stage: int = 0
    kind: str = ""
    name: str = ""


def head_of(record: Record) -> Head:
    """The head of a record, from its first bytes where they tell; ``type`` is empty where it cannot be decoded."""
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(record.value[:HEAD_BYTES])
    try:
        unpacker.read_map_header()
        first = [(unpacker.unpack(), unpacker.unpack()) for _ in range(3)]
        found = dict(first)
        kind = _KINDS.get(tuple(name for name, _ in first))
    except (ValueError, TypeError, msgpack.UnpackException):
        kind = None
    if kind is None or type(found["step"]) is not int or type(found["stage"]) is not int:
        return _decoded(record)
    return Head(
        kind,
        record.offset,
        record.timestamp,
        found["step"],
        found["stage"],
        str(found.get("kind", "")),
        str(found.get("name", "")),
    )


def _decoded(record: Record) -> Head:
    try:
        message = decode(record.value)
    except DecodeError:
        return Head("", record.offset, record.timestamp)
    names = ("step", "stage", "kind") if isinstance(message, Manifest) else ("step", "stage", "name")
    told = {name: getattr(message, name) for name in names if hasattr(message, name)}
    return Head(message.TYPE, record.offset, record.timestamp, **told)
