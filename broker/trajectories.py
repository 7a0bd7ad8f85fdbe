"""The trajectory record: one sample of a prompt, with all that a rewarder or the learner needs to use it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from broker.errors import MessageError
from broker.prompts import PURPOSES, ChatMessage, Sampling, messages_of
from broker.wire import (
    Extra,
    Json,
    integer,
    mapping,
    number,
    numbers,
    optional_number,
    pack_extras,
    read_extras,
    require,
    text,
)  # fmt: skip

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
_TOKEN, _LOGPROB = np.dtype("<i4"), np.dtype("<f4")
_INT, _FLOAT = np.dtype(np.int32), np.dtype(np.float32)
FINISH_REASONS = ("stop", "length", "abort", "turns")
_ONE_PURPOSE, _ONE_FINISH = f"one of {PURPOSES}", f"one of {FINISH_REASONS}"


class Segment(NamedTuple):
    """Tokens ``start <= t < end`` of one role; only trainable segments carry behaviour log-probabilities."""

    role: str
    start: int
    end: int
    trainable: bool


class VersionSpan(NamedTuple):
    """Tokens from ``start`` on, up to the next span, were sampled by policy ``version``."""

    version: int
    start: int


class Reply(NamedTuple):
    """A reply of an episode: ``turns[turn]``, sampled from ``started`` to ``ended`` (seconds since the epoch). Its environment took
    ``seconds`` to answer, and may give it a ``value`` of its own."""

    turn: int
    started: float
    ended: float
    seconds: float = 0.0
    value: float | None = None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One sample of a group, with everything that a rewarder or the learner needs to use it.

    ``tokens`` int32 ``[T]`` is prompt and response; ``logprobs`` float32 ``[T]`` holds the behaviour log-probability of
    each token of a trainable segment under the distribution it was sampled from (after temperature and top-p), zero
    elsewhere. ``segments`` cover ``[0, T)`` without gaps. ``versions`` begin at the first sampled token and have rising
    starts. ``text`` is the response without its end token, after what the prompt opened for it (such as ``<think>``). ``finish_reason`` is ``stop``,
    ``length``, ``abort``, or ``turns`` (an episode that was allowed no further one).

    An episode in an ``environment`` has all messages after the prompt in ``turns``, in order; ``outcome`` is the environment's result, if it
    gave one, and ``why`` its reason. The environment took ``opening`` seconds to open it; ``replies`` are the model's turns, one for each
    trainable segment, in order. ``collection`` is the prompt's. ``session`` names the session of an agent outside that this is a part of:
    ``NAME``, and from its second part on ``NAME#2``.
    """

    TYPE: ClassVar[str] = "trajectory"
    group_id: str
    index: int
    group_size: int
    messages: tuple[ChatMessage, ...]
    answer: str | None
    kind: str
    metadata: Mapping[str, Json]
    rewards: Mapping[str, float]
    purpose: str
    text: str
    tokens: IntArray
    logprobs: FloatArray
    segments: tuple[Segment, ...]
    versions: tuple[VersionSpan, ...]
    finish_reason: str
    sampling: Sampling
    engine: str = ""
    actor: str = ""
    created: float = 0.0
    started: float = 0.0
    environment: str = ""
    turns: tuple[ChatMessage, ...] = ()
    outcome: float | None = None
    collection: str = ""
    session: str = ""
    replies: tuple[Reply, ...] = ()
    opening: float = 0.0
    why: str = ""

    def __post_init__(self) -> None:
        tokens, logprobs = self.tokens, self.logprobs
        n = tokens.shape[0] if tokens.ndim == 1 else 0
        if n == 0 or tokens.dtype != _INT:
            raise MessageError(f"tokens are {tokens.dtype} {tokens.shape}; they must be a non-empty int32 vector")
        if logprobs.dtype != _FLOAT or logprobs.shape != (n,):
            raise MessageError(
                f"logprobs are {logprobs.dtype} {logprobs.shape}; they must be float32 ({n},), one a token"
            )
        if np.minimum.reduce(tokens) < 0:
            raise MessageError(f"tokens hold {int(tokens.min())}; token ids must be >= 0")
        if not (np.maximum.reduce(logprobs) <= 1e-4 and math.isfinite(np.dot(logprobs, logprobs))):
            raise MessageError(f"logprobs run from {logprobs.min()} to {logprobs.max()}; they must be finite and <= 0")
        require(0 <= self.index < self.group_size, "index", self.index, "0 <= index < group_size")
        require(bool(self.group_id), "group_id", self.group_id, "a non-empty text")
        require(self.purpose in PURPOSES, "purpose", self.purpose, _ONE_PURPOSE)
        require(self.finish_reason in FINISH_REASONS, "finish_reason", self.finish_reason, _ONE_FINISH)
        if self.outcome is not None:
            require(math.isfinite(self.outcome), "outcome", self.outcome, "a finite number, or absent")
        first = self._first_trained(n)
        last = -1
        for version, start in self.versions:
            require(last < start < n and version >= 0, "versions", self.versions, "rising starts, versions >= 0")
            last = start
        turn = -1
        for reply in self.replies:
            sound = turn < reply.turn < len(self.turns) and (reply.value is None or math.isfinite(reply.value))
            require(sound, "replies", self.replies, "places in turns, in order, with finite values")
            turn = reply.turn
        if first >= 0:
            require(bool(self.versions), "versions", self.versions, "a span for the sampled tokens")
            covered = self.versions[0].start <= first
            require(covered, "versions", self.versions, "a span that covers the first sampled token")

    def _first_trained(self, n: int) -> int:
        """The start of the first trainable segment; -1 if there is none. Raises MessageError unless the segments cover ``n`` tokens."""
        at, first = 0, -1
        for _, start, end, trainable in self.segments:
            require(start == at and end > at, "segments", self.segments, "spans that cover the tokens in order")
            if trainable and first < 0:
                first = start
            at = end
        require(at == n, "segments", self.segments, "spans that end with the tokens")
        return first

    @property
    def schema(self) -> int:
        return 2 if self.environment or self.purpose == "collect" or self.finish_reason == "turns" else 1

    @property
    def id(self) -> str:
        return trajectory_id(self.group_id, self.index)

    @property
    def response_tokens(self) -> int:
        """Number of trainable tokens."""
        return sum(s.end - s.start for s in self.segments if s.trainable)

    @property
    def oldest_version(self) -> int:
        return min((s.version for s in self.versions), default=0)

    @property
    def newest_version(self) -> int:
        return max((s.version for s in self.versions), default=0)

    def staleness(self, step: int) -> int:
        """Staleness in versions: from the version of the oldest tokens to ``step - 1``, the policy that ``step`` trains."""
        return step - 1 - self.oldest_version

    def mask(self) -> NDArray[np.bool_]:
        """bool ``[T]``: the trainable tokens."""
        mask = np.zeros(self.tokens.shape[0], dtype=np.bool_)
        for segment in self.segments:
            mask[segment.start : segment.end] = segment.trainable
        return mask

    def versions_per_token(self) -> IntArray:
        """int32 ``[T]``: the policy version that sampled each token; -1 before the first span."""
        out = np.full(self.tokens.shape[0], -1, dtype=np.int32)
        for span in self.versions:
            out[span.start :] = span.version
        return out

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trajectory) and self.pack() == other.pack()

    def pack(self) -> dict[str, Json]:
        return {
            "group_id": self.group_id, "index": self.index, "group_size": self.group_size,
            "messages": [list(m) for m in self.messages], "answer": self.answer, "kind": self.kind,
            "metadata": dict(self.metadata), "rewards": dict(self.rewards), "purpose": self.purpose, "text": self.text,
            "tokens": self.tokens.astype("<i4", copy=False).tobytes(),
            "logprobs": self.logprobs.astype("<f4", copy=False).tobytes(),
            "segments": [list(s) for s in self.segments], "versions": [list(v) for v in self.versions],
            "finish_reason": self.finish_reason, "sampling": self.sampling.pack(), "engine": self.engine,
            "actor": self.actor, "created": self.created, "started": self.started,
            **pack_extras(self, _EXTRAS),
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Trajectory:
        fields = _FIELDS(wire)
        if tuple(map(type, fields)) not in _TYPES:
            fields = _checked(fields)
        self = object.__new__(cls)
        # a call of object.__setattr__ for each of twenty fields would cost as much as all the rest
        members = self.__dict__
        members.update(_DEFAULTS)
        if len(wire) > len(_NAMES) + 2:
            members.update(read_extras(wire, _EXTRAS))
        members.update(zip(_NAMES, fields, strict=True))
        members["messages"] = messages_of(members["messages"])
        members["rewards"] = numbers(members["rewards"])
        members["metadata"] = mapping(members["metadata"])
        members["tokens"] = np.frombuffer(members["tokens"], dtype=_TOKEN)
        members["logprobs"] = np.frombuffer(members["logprobs"], dtype=_LOGPROB)
        members["segments"] = tuple([_segment(*row) for row in members["segments"]])
        members["versions"] = tuple([_span(*row) for row in members["versions"]])
        members["sampling"] = Sampling.unpack(members["sampling"])
        self.__post_init__()
        return self


_KINDS: dict[str, tuple[type, ...]] = {
    "group_id": (str,), "index": (int,), "group_size": (int,), "messages": (list,), "answer": (str, type(None)), "kind": (str,),
    "metadata": (dict,), "rewards": (dict,), "purpose": (str,), "text": (str,), "tokens": (bytes,), "logprobs": (bytes,),
    "segments": (list,), "versions": (list,), "finish_reason": (str,), "sampling": (dict,), "engine": (str,), "actor": (str,),
    "created": (float, int), "started": (float, int),
}  # fmt: skip
"""The fields of a trajectory on the wire, with the types that each may have."""
_NAMES = tuple(_KINDS)


def _segment(role: Json, start: Json, end: Json, trainable: Json) -> Segment:
    if type(role) is not str or type(start) is not int or type(end) is not int:
        raise TypeError(f"a segment {(role, start, end)!r} where a role and two integers are expected")
    return tuple.__new__(Segment, (role, start, end, bool(trainable)))


def _span(version: Json, start: Json) -> VersionSpan:
    if type(version) is not int or type(start) is not int:
        raise TypeError(f"a span {(version, start)!r} where two integers are expected")
    return tuple.__new__(VersionSpan, (version, start))


def _reply(row: Json) -> Reply:
    turn, started, ended, seconds, value = row
    return Reply(integer(turn), number(started), number(ended), number(seconds), optional_number(value))


_EXTRAS = {
    "environment": Extra("", text), "turns": Extra((), messages_of, lambda turns: [list(t) for t in turns]),
    "outcome": Extra(None, optional_number), "collection": Extra("", text),
    "session": Extra("", text),
    "replies": Extra((), lambda rows: tuple([_reply(row) for row in rows]), lambda replies: [list(r) for r in replies]),
    "opening": Extra(0.0, number), "why": Extra("", text),
}  # fmt: skip
_DEFAULTS = {name: extra.default for name, extra in _EXTRAS.items()}
_FIELDS = itemgetter(*_NAMES)
_TYPES = frozenset(
    product(*_KINDS.values())
)  # looked up at once: one call for each field would cost more than the decoding


def _checked(fields: tuple[Json, ...]) -> tuple[Json, ...]:
    """Raises TypeError, naming the first field of a wrong type."""
    for (name, kinds), value in zip(_KINDS.items(), fields, strict=True):
        if type(value) not in kinds:
            raise TypeError(f"{name} is {type(value).__name__} where {kinds[0].__name__} is expected")
    return fields


def trajectory_id(group_id: str, index: int) -> str:
    return f"{group_id}#{index}"
