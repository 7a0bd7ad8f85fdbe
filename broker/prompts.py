"""The prompt record, and what it and its trajectories share: messages and sampling options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, NamedTuple

from broker.wire import (
    Extra,
    Json,
    integer,
    mapping,
    number,
    numbers,
    optional_text,
    pack_extras,
    read_extras,
    require,
    strings,
    text,
)  # fmt: skip

PURPOSES = ("train", "eval", "collect")


class ChatMessage(NamedTuple):
    """One turn of the conversation that is the prompt."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample: ``temperature`` 0 is greedy; ``top_p`` 1 keeps the whole distribution; lengths are in tokens.

    ``max_new_tokens`` bounds one reply; ``max_turns`` the replies of an episode and ``max_total`` its tokens, including the prompt and
    the environment's messages (0: the engine's context).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    max_turns: int = 1
    max_total: int = 0

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
        require(self.max_turns >= 1, "sampling.max_turns", self.max_turns, "at least 1")
        require(self.max_total >= 0, "sampling.max_total", self.max_total, "at least 0")

    def pack(self) -> dict[str, Json]:
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "stop": list(self.stop),
            **pack_extras(self, _EXTRAS_OF_SAMPLING),
        }

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Sampling:
        return _sampling(
            wire["temperature"], wire["top_p"], wire["max_new_tokens"], wire.get("max_turns", 1), wire.get("max_total", 0), *wire["stop"]
        )  # fmt: skip


_EXTRAS_OF_SAMPLING = {"max_turns": Extra(1, integer), "max_total": Extra(0, integer)}


@lru_cache(maxsize=256, typed=True)
def _sampling(
    temperature: Json, top_p: Json, max_new_tokens: Json, max_turns: Json, max_total: Json, *stop: Json
) -> Sampling:
    """A ``Sampling`` from its fields on the wire. A run has few distinct ones, which repeat in every record."""
    return Sampling(
        float(temperature), float(top_p), integer(max_new_tokens), strings(stop), integer(max_turns), integer(max_total)
    )


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt to be sampled ``group_size`` times: the unit of work of an actor, and of a gradient's group.

    ``group_id`` is ``dataset-row@issue``, unique for ever. ``rewards`` is the mix: weight by rewarder name; every one
    named must vote on every sample. ``purpose`` is ``train``, ``eval``, or ``collect`` (its samples become neither a
    gradient nor a figure); the latter two name the ``collection`` that ends their groups (``evaluation`` on the wire).
    ``number`` counts the prompts of its data source, ``version`` is the policy version when it was fed, ``min_version`` the
    oldest one that may answer. ``created`` is in seconds since the epoch. ``environment`` names the table of the run file that the samples
    are episodes in; ``content`` is a fingerprint of the row; ``template`` holds options of the chat template.
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
    collection: str = ""
    number: int = 0
    version: int = 0
    min_version: int = 0
    created: float = 0.0
    environment: str = ""
    content: str = ""
    template: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            bool(self.group_id) and "#" not in self.group_id, "group_id", self.group_id, "a non-empty text without '#'"
        )
        require(bool(self.messages), "messages", self.messages, "at least one message")
        require(self.group_size >= 1, "group_size", self.group_size, "at least 1")
        require(self.purpose in PURPOSES, "purpose", self.purpose, f"one of {PURPOSES}")
        require(all(math.isfinite(w) for w in self.rewards.values()), "rewards", self.rewards, "finite weights")
        require(self.min_version >= 0, "min_version", self.min_version, "at least 0")

    @property
    def schema(self) -> int:
        return 2 if self.purpose == "collect" or self.environment or self.template else 1

    @property
    def dataset(self) -> str:
        return self.group_id.rpartition("@")[0].rpartition("-")[0]

    def pack(self) -> dict[str, Json]:
        return {
            "group_id": self.group_id, "messages": [list(m) for m in self.messages], "group_size": self.group_size,
            "answer": self.answer, "kind": self.kind, "metadata": dict(self.metadata), "rewards": dict(self.rewards),
            "sampling": self.sampling.pack(), "purpose": self.purpose, "evaluation": self.collection,
            "number": self.number, "version": self.version, "min_version": self.min_version, "created": self.created,
            **pack_extras(self, _EXTRAS),
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Prompt:
        return cls(
            group_id=text(wire["group_id"]),
            messages=messages_of(wire["messages"]),
            group_size=integer(wire["group_size"]),
            answer=optional_text(wire["answer"]),
            kind=text(wire["kind"]),
            metadata=mapping(wire["metadata"]),
            rewards=numbers(wire["rewards"]),
            sampling=Sampling.unpack(wire["sampling"]),
            purpose=text(wire["purpose"]),
            collection=text(wire["evaluation"]),
            number=integer(wire["number"]),
            version=integer(wire["version"]),
            min_version=integer(wire["min_version"]),
            created=number(wire["created"]),
            **read_extras(wire, _EXTRAS),
        )


_EXTRAS = {"environment": Extra("", text), "content": Extra("", text), "template": Extra({}, mapping, dict)}


def messages_of(value: Json) -> tuple[ChatMessage, ...]:
    return tuple([ChatMessage(text(role), text(content)) for role, content in value])
