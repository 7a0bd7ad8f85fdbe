"""The records on the wire: frozen, versioned, and checked at birth.

Every record is one msgpack map ``{"t": type, "v": schema version, ...}``; arrays are raw little-endian bytes (tokens
``<i4``, log-probabilities ``<f4``). A record with a newer schema version than this code knows is refused, unknown
fields of the same version are ignored, so that fields may be added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from operator import itemgetter
from typing import ClassVar, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from broker.errors import DecodeError, MessageError
from broker.manifests import (
    Dropped,
    Evaluation,
    GroupRef,
    Manifest,
    PlannerState,
    SampleRef,
    StepResult,
    VoteRef,
)
from broker.verdicts import OUTCOMES, DeadLetter, PolicyVersion, Settled, Trimmed, Vote
from broker.wire import Json, Position, integer, mapping, number, numbers, optional_text, require, strings, text

__all__ = [
    "FINISH_REASONS", "OUTCOMES", "SCHEMA", "ChatMessage", "DeadLetter", "Dropped", "Evaluation", "FloatArray", "GroupRef",
    "IntArray", "Manifest", "Message", "PlannerState", "PolicyVersion", "Position", "Prompt", "SampleRef", "Sampling",
    "Segment", "Settled", "StepResult", "Trajectory", "Trimmed", "VersionSpan", "Vote", "VoteRef", "decode", "encode", "trajectory_id",
]  # fmt: skip

SCHEMA = 1
IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
_TOKEN, _LOGPROB = np.dtype("<i4"), np.dtype("<f4")


class ChatMessage(NamedTuple):
    """One turn of the conversation that is the prompt."""

    role: str
    content: str


class Segment(NamedTuple):
    """Tokens ``start <= t < end`` spoken by one role; only trainable segments carry behaviour log-probabilities."""

    role: str
    start: int
    end: int
    trainable: bool


class VersionSpan(NamedTuple):
    """Tokens from ``start`` on, up to the next span, were sampled by policy ``version``."""

    version: int
    start: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample: ``temperature`` 0 is greedy; ``top_p`` 1 keeps the whole distribution; lengths are in tokens."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            "sampling.temperature",
            self.temperature,
            "a number >= 0",
        )
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "a number in (0, 1]")
        require(self.max_new_tokens >= 1, "sampling.max_new_tokens", self.max_new_tokens, "at least 1")
        require(all(self.stop), "sampling.stop", self.stop, "non-empty strings")

    def pack(self) -> dict[str, Json]:
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "stop": list(self.stop),
        }

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Sampling:
        return _sampling(
            float(wire["temperature"]), float(wire["top_p"]), integer(wire["max_new_tokens"]), strings(wire["stop"])
        )


@lru_cache(maxsize=256)
def _sampling(temperature: float, top_p: float, max_new_tokens: int, stop: tuple[str, ...]) -> Sampling:
    """A run has few of them, and each comes with every record."""
    return Sampling(temperature, top_p, max_new_tokens, stop)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt to be sampled ``group_size`` times: the unit of work of an actor, and of a gradient's group.

    ``group_id`` is ``dataset-row@issue``, unique for ever. ``rewards`` is the mix: weight by rewarder name; every one
    named must vote on every sample. ``purpose`` is ``train`` or ``eval``; an ``eval`` prompt names its ``evaluation``.
    ``number`` counts the prompts of its data source, ``version`` is the policy version when it was fed, ``min_version`` the
    oldest one that may answer. ``created`` is in seconds since the epoch.
    """

    TYPE: ClassVar[str] = "prompt"
    group_id: str
    messages: tuple[ChatMessage, ...]
    group_size: int
    answer: str | None = None
    kind: str = ""
    metadata: Mapping[str, Json] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=dict)
    sampling: Sampling = Sampling()
    purpose: str = "train"
    evaluation: str = ""
    number: int = 0
    version: int = 0
    min_version: int = 0
    created: float = 0.0

    def __post_init__(self) -> None:
        require(
            bool(self.group_id) and "#" not in self.group_id, "group_id", self.group_id, "a non-empty text without '#'"
        )
        require(bool(self.messages), "messages", self.messages, "at least one message")
        require(self.group_size >= 1, "group_size", self.group_size, "at least 1")
        require(self.purpose in ("train", "eval"), "purpose", self.purpose, "'train' or 'eval'")
        require(all(math.isfinite(w) for w in self.rewards.values()), "rewards", self.rewards, "finite weights")
        require(self.min_version >= 0, "min_version", self.min_version, "at least 0")

    @property
    def dataset(self) -> str:
        return self.group_id.rpartition("@")[0].rpartition("-")[0]

    def pack(self) -> dict[str, Json]:
        return {
            "group_id": self.group_id, "messages": [list(m) for m in self.messages], "group_size": self.group_size,
            "answer": self.answer, "kind": self.kind, "metadata": dict(self.metadata), "rewards": dict(self.rewards),
            "sampling": self.sampling.pack(), "purpose": self.purpose, "evaluation": self.evaluation,
            "number": self.number, "version": self.version, "min_version": self.min_version, "created": self.created,
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Prompt:
        return cls(
            group_id=text(wire["group_id"]),
            messages=_messages(wire["messages"]),
            group_size=integer(wire["group_size"]),
            answer=optional_text(wire["answer"]),
            kind=text(wire["kind"]),
            metadata=mapping(wire["metadata"]),
            rewards=numbers(wire["rewards"]),
            sampling=Sampling.unpack(wire["sampling"]),
            purpose=text(wire["purpose"]),
            evaluation=text(wire["evaluation"]),
            number=integer(wire["number"]),
            version=integer(wire["version"]),
            min_version=integer(wire["min_version"]),
            created=number(wire["created"]),
        )


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One sample of a group, with all that a rewarder or the learner needs to use it without another look-up.

    ``tokens`` int32 ``[T]`` is prompt and response; ``logprobs`` float32 ``[T]`` holds the behaviour log-probability of
    each token of a trainable segment under the distribution it was sampled from (after temperature and top-p), zero
    elsewhere. ``segments`` cover ``[0, T)`` without gaps. ``versions`` begin at the first sampled token and have rising
    starts. ``text`` is the response without its end token. ``finish_reason`` is ``stop``, ``length`` or ``abort``.
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

    def __post_init__(self) -> None:
        tokens, logprobs = self.tokens, self.logprobs
        n = tokens.shape[0] if tokens.ndim == 1 else 0
        if n == 0 or tokens.dtype != np.int32:
            raise MessageError(f"tokens are {tokens.dtype} {tokens.shape}; they must be a non-empty int32 vector")
        if logprobs.dtype != np.float32 or logprobs.shape != (n,):
            raise MessageError(
                f"logprobs are {logprobs.dtype} {logprobs.shape}; they must be float32 ({n},), one a token"
            )
        if np.minimum.reduce(tokens) < 0:
            raise MessageError(f"tokens hold {int(tokens.min())}; token ids must be >= 0")
        if not (np.maximum.reduce(logprobs) <= 1e-4 and math.isfinite(np.dot(logprobs, logprobs))):
            raise MessageError(f"logprobs run from {logprobs.min()} to {logprobs.max()}; they must be finite and <= 0")
        require(0 <= self.index < self.group_size, "index", self.index, "0 <= index < group_size")
        require(bool(self.group_id), "group_id", self.group_id, "a non-empty text")
        require(self.purpose in ("train", "eval"), "purpose", self.purpose, "'train' or 'eval'")
        require(
            self.finish_reason in FINISH_REASONS, "finish_reason", self.finish_reason, "'stop', 'length' or 'abort'"
        )
        at = 0
        for _, start, end, _ in self.segments:
            require(start == at and end > at, "segments", self.segments, "spans that cover the tokens in order")
            at = end
        require(at == n, "segments", self.segments, "spans that end with the tokens")
        last = -1
        for version, start in self.versions:
            require(last < start < n and version >= 0, "versions", self.versions, "rising starts, versions >= 0")
            last = start
        trainable = [s for s in self.segments if s.trainable]
        if trainable:
            require(bool(self.versions), "versions", self.versions, "a span for the sampled tokens")
            require(
                self.versions[0].start <= trainable[0].start,
                "versions",
                self.versions,
                "a span that covers the first sampled token",
            )

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
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Trajectory:
        fields = _FIELDS(wire)
        if tuple(map(type, fields)) not in _TYPES:
            fields = _checked(fields)
        self = object.__new__(cls)
        members = self.__dict__  # twenty times object.__setattr__ would cost as much as all the rest
        members.update(zip(_NAMES, fields, strict=True))
        members["messages"] = _messages(members["messages"])
        members["rewards"] = numbers(members["rewards"])
        members["metadata"] = mapping(members["metadata"])
        members["tokens"] = np.frombuffer(members["tokens"], dtype=_TOKEN)
        members["logprobs"] = np.frombuffer(members["logprobs"], dtype=_LOGPROB)
        members["segments"] = tuple(
            [Segment(text(r), integer(s), integer(e), bool(t)) for r, s, e, t in members["segments"]]
        )
        members["versions"] = tuple([VersionSpan(integer(v), integer(s)) for v, s in members["versions"]])
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
_FIELDS = itemgetter(*_NAMES)
_TYPES = frozenset(product(*_KINDS.values()))  # looked up in one go: a call a field would cost more than the decoding


def _checked(fields: tuple[Json, ...]) -> tuple[Json, ...]:
    """Raises TypeError, naming the first field of a wrong type."""
    for (name, kinds), value in zip(_KINDS.items(), fields, strict=True):
        if type(value) not in kinds:
            raise TypeError(f"{name} is {type(value).__name__} where {kinds[0].__name__} is expected")
    return fields


FINISH_REASONS = ("stop", "length", "abort")


Message = (
    Prompt | Trajectory | Vote | Manifest | StepResult | Evaluation | PolicyVersion | DeadLetter | Settled | Trimmed
)
_UNPACK: dict[str, Callable[[Mapping[str, Json]], Message]] = {
    cls.TYPE: cls.unpack
    for cls in (Prompt, Trajectory, Vote, Manifest, StepResult, Evaluation, PolicyVersion, DeadLetter, Settled, Trimmed)
}


def encode(message: Message) -> bytes:
    """The bytes of ``message``. Raises MessageError if its metadata holds what msgpack cannot say."""
    wire = message.pack()
    wire["t"], wire["v"] = message.TYPE, SCHEMA
    try:
        return msgpack.packb(wire)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MessageError(f"{message.TYPE} cannot be encoded: {error}") from error


def decode(data: bytes) -> Message:
    """The message in ``data``, whatever its type. Any other bytes raise DecodeError, which carries them."""
    try:
        wire = msgpack.unpackb(data, strict_map_key=False)
        if not isinstance(wire, dict):
            raise TypeError(f"a {type(wire).__name__} where a map is expected")
        kind, schema = wire.get("t"), wire.get("v")
        if not isinstance(kind, str) or kind not in _UNPACK:
            raise ValueError(f"unknown message type {kind!r}")
        if schema != SCHEMA:
            raise ValueError(f"schema version {schema!r} where {SCHEMA} is known")
        return _UNPACK[kind](wire)
    except Exception as error:  # any bytes may come in here: whatever they break, they are data, not a crash
        what = f"missing field {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise DecodeError(what[:500], data) from error


def trajectory_id(group_id: str, index: int) -> str:
    return f"{group_id}#{index}"


def _messages(value: Json) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(text(role), text(content)) for role, content in value)
