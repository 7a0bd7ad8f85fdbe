"""The smaller records: a rewarder's vote and its outage, the newest policy version, a dead letter and how it was settled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from broker.wire import (
    Extra,
    Json,
    flag,
    integer,
    number,
    offsets,
    pack_extras,
    pairs,
    raw,
    read_extras,
    require,
    text,
)  # fmt: skip

OUTCOMES = ("value", "abstain", "error")
CAUSES = ("", "timeout", "killed", "error", "outage")


class ValueSpan(NamedTuple):
    """The value of one step of a response: tokens ``start <= t < end`` of the trajectory."""

    start: int
    end: int
    value: float


@dataclass(frozen=True, slots=True)
class Vote:
    """One rewarder's verdict on one sample: a value, an abstention, or an error; an error is never a reward of 0.

    ``answer`` is the response's final answer in canonical form, as the rewarder read it (for cons@k). ``cause`` is the kind of failure
    that led to the outcome: with a value, a failure of the judge that the *answer* caused (``timeout``, ``killed``); with an error, one of the
    judge itself. ``spans`` are values of single steps; ``logprobs`` are a teacher's log-probabilities of the trainable tokens (little-endian float32).
    A ``shadow`` vote is recorded and shown, but never trained on. ``version`` identifies the rewarder's version.
    """

    TYPE: ClassVar[str] = "vote"
    group_id: str
    index: int
    rewarder: str
    outcome: str
    value: float | None = None
    why: str = ""
    seconds: float = 0.0
    attempts: int = 1
    created: float = 0.0
    answer: str = ""
    cause: str = ""
    shadow: bool = False
    version: str = ""
    spans: tuple[ValueSpan, ...] = ()
    logprobs: bytes = b""

    def __post_init__(self) -> None:
        require(bool(self.group_id), "group_id", self.group_id, "a non-empty text")
        require(self.index >= 0, "index", self.index, "at least 0")
        require(bool(self.rewarder), "rewarder", self.rewarder, "a non-empty name")
        require(self.outcome in OUTCOMES, "outcome", self.outcome, f"one of {OUTCOMES}")
        has_value = self.value is not None and math.isfinite(self.value)
        require(
            has_value == (self.outcome == "value") and (has_value or self.value is None),
            "value",
            self.value,
            "finite with outcome 'value', else absent",
        )
        require(self.cause in CAUSES, "cause", self.cause, f"one of {CAUSES}")
        require(len(self.logprobs) % 4 == 0, "logprobs", len(self.logprobs), "four bytes a token")
        for start, end, value in self.spans:
            require(
                0 <= start < end and math.isfinite(value), "spans", self.spans, "non-empty spans with finite values"
            )

    def pack(self) -> dict[str, Json]:
        return {
            "group_id": self.group_id, "index": self.index, "rewarder": self.rewarder, "outcome": self.outcome,
            "value": self.value, "why": self.why, "seconds": self.seconds, "attempts": self.attempts, "created": self.created,
            **pack_extras(self, _EXTRAS_OF_VOTE),
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Vote:
        value = wire["value"]
        return cls(
            group_id=text(wire["group_id"]),
            index=integer(wire["index"]),
            rewarder=text(wire["rewarder"]),
            outcome=text(wire["outcome"]),
            value=None if value is None else number(value),
            why=text(wire.get("why", "")),
            seconds=number(wire.get("seconds", 0.0)),
            attempts=integer(wire.get("attempts", 1)),
            created=number(wire.get("created", 0.0)),
            **read_extras(wire, _EXTRAS_OF_VOTE),
        )


def _spans(value: Json) -> tuple[ValueSpan, ...]:
    return tuple(ValueSpan(integer(start), integer(end), number(worth)) for start, end, worth in value)


_EXTRAS_OF_VOTE = {
    "answer": Extra("", text), "cause": Extra("", text), "shadow": Extra(False, flag), "version": Extra("", text),
    "spans": Extra((), _spans, lambda spans: [list(s) for s in spans]), "logprobs": Extra(b"", raw),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outage:
    """Something that a rewarder needs is unavailable, so its samples wait: sent at the beginning, about every ten seconds while it
    lasts, and with ``away`` false at the end. ``error`` is the last failure, ``held`` the number of waiting samples. The deadlines of groups
    that this rewarder must judge are suspended meanwhile, but for no more than half a minute after its last record.
    """

    TYPE: ClassVar[str] = "outage"
    schema: ClassVar[int] = 2
    rewarder: str
    worker: str
    away: bool
    error: str = ""
    held: int = 0
    created: float = 0.0

    def __post_init__(self) -> None:
        require(bool(self.rewarder), "rewarder", self.rewarder, "a non-empty name")
        require(self.held >= 0, "held", self.held, "at least 0")

    def pack(self) -> dict[str, Json]:
        return {
            "rewarder": self.rewarder, "worker": self.worker, "away": self.away, "error": self.error, "held": self.held,
            "created": self.created,
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Outage:
        return cls(
            text(wire["rewarder"]),
            text(wire.get("worker", "")),
            flag(wire["away"]),
            text(wire.get("error", "")),
            integer(wire.get("held", 0)),
            number(wire.get("created", 0.0)),
        )


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """The newest published policy: the path of its weights, and the control endpoint of its learner (compacted topic)."""

    TYPE: ClassVar[str] = "policy"
    version: int
    path: str
    checksum: str = ""
    control: str = ""
    learner: str = ""
    created: float = 0.0

    def __post_init__(self) -> None:
        require(self.version >= 0, "version", self.version, "at least 0")

    def pack(self) -> dict[str, Json]:
        return {
            "version": self.version, "path": self.path, "checksum": self.checksum, "control": self.control,
            "learner": self.learner, "created": self.created,
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> PolicyVersion:
        return cls(
            integer(wire["version"]),
            text(wire["path"]),
            text(wire["checksum"]),
            text(wire["control"]),
            text(wire["learner"]),
            number(wire["created"]),
        )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be processed: the raw bytes, their origin, the error, and the number of attempts."""

    TYPE: ClassVar[str] = "deadletter"
    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    error: str
    worker: str
    group_id: str = ""
    attempts: int = 1
    created: float = 0.0

    def pack(self) -> dict[str, Json]:
        return {
            "topic": self.topic, "partition": self.partition, "offset": self.offset, "key": self.key, "value": self.value,
            "error": self.error, "worker": self.worker, "group_id": self.group_id, "attempts": self.attempts, "created": self.created,
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> DeadLetter:
        return cls(
            topic=text(wire["topic"]),
            partition=integer(wire["partition"]),
            offset=integer(wire["offset"]),
            key=raw(wire["key"]),
            value=raw(wire["value"]),
            error=text(wire["error"]),
            worker=text(wire["worker"]),
            group_id=text(wire["group_id"]),
            attempts=integer(wire["attempts"]),
            created=number(wire["created"]),
        )


@dataclass(frozen=True, slots=True)
class Settled:
    """The dead letter at ``offset`` is settled: its record was ``replayed``, or ``dropped`` for good."""

    TYPE: ClassVar[str] = "settled"
    offset: int
    action: str
    created: float = 0.0

    def __post_init__(self) -> None:
        require(self.offset >= 0, "offset", self.offset, "at least 0")
        require(self.action in ("replayed", "dropped"), "action", self.action, "'replayed' or 'dropped'")

    def pack(self) -> dict[str, Json]:
        return {"offset": self.offset, "action": self.action, "created": self.created}

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Settled:
        return cls(integer(wire["offset"]), text(wire["action"]), number(wire["created"]))


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The records of ``topic`` below these offsets were removed, as no longer needed."""

    TYPE: ClassVar[str] = "trimmed"
    topic: str
    offsets: Mapping[int, int]
    created: float = 0.0

    def pack(self) -> dict[str, Json]:
        return {"topic": self.topic, "offsets": pairs(self.offsets), "created": self.created}

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Trimmed:
        return cls(text(wire["topic"]), offsets(wire["offsets"]), number(wire["created"]))
