"""A seal in the ``steps`` topic: an audit found everything below it sound, so the next audit can begin there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from broker.wire import Json, integer, mapping, number, offsets, pairs, require, strings, text


@dataclass(frozen=True, slots=True)
class Seal:
    """Sound up to offset ``steps`` of the steps topic, with what an audit needs to go on from there.

    ``version`` is the newest policy version then, ``manifest`` the offset of the newest manifest (-1: there was none). ``counts`` and
    ``reasons`` are the audit's counts so far. ``prompts``, ``trajectories`` and ``deadletters`` are the offsets of the first record of each
    partition that was not audited; ``outstanding`` are the groups that were fed but had not ended.
    """

    TYPE: ClassVar[str] = "seal"
    steps: int
    version: int
    manifest: int
    counts: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    prompts: Mapping[int, int] = field(default_factory=dict)
    trajectories: Mapping[int, int] = field(default_factory=dict)
    deadletters: Mapping[int, int] = field(default_factory=dict)
    outstanding: tuple[str, ...] = ()
    created: float = 0.0
    schema: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require(self.steps >= 0 and self.version >= 0, "steps, version", (self.steps, self.version), "at least 0")
        require(self.manifest < self.steps, "manifest", self.manifest, "an offset below the seal's")

    def pack(self) -> dict[str, Json]:
        return {
            "steps": self.steps, "version": self.version, "manifest": self.manifest, "counts": dict(self.counts),
            "reasons": dict(self.reasons), "prompts": pairs(self.prompts), "trajectories": pairs(self.trajectories),
            "deadletters": pairs(self.deadletters), "outstanding": list(self.outstanding), "created": self.created,
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Seal:
        return cls(
            steps=integer(wire["steps"]),
            version=integer(wire["version"]),
            manifest=integer(wire["manifest"]),
            counts={name: integer(count) for name, count in mapping(wire["counts"]).items()},
            reasons={text(name): integer(count) for name, count in mapping(wire["reasons"]).items()},
            prompts=offsets(wire["prompts"]),
            trajectories=offsets(wire["trajectories"]),
            deadletters=offsets(wire["deadletters"]),
            outstanding=strings(wire["outstanding"]),
            created=number(wire["created"]),
        )
