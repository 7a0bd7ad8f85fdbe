"""The records of the ``steps`` topic that end the groups of a collection: an evaluation's figures, and what a stage made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from broker.manifests import Dropped, GroupRef, dropped_of, groups_of, pack_groups
from broker.wire import Extra, Json, integer, mapping, number, numbers, pack_extras, read_extras, require, strings, text

JUDGED_ENOUGH = 0.9
"""Share of the answers that must be judged for an evaluation to be reliable: unjudged ones are rarely like the others."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """pass@1 over ``k`` samples of each question and cons@k, with 95% intervals, on the versions that answered.

    ``group_ids`` are the groups that end here; ``dropped`` those of them that could not be judged. ``data`` is the data source and ``rewarder`` the
    judge. ``marks`` has a string for each of ``group_ids``, with a character for each sample: ``1`` right, ``0`` wrong or unfinished, ``-`` not
    judged. ``examples`` are the log positions of some groups. Records of earlier versions lack these four.
    """

    TYPE: ClassVar[str] = "evaluation"
    name: str
    step: int
    stage: int
    questions: int
    k: int
    pass_at_1: float
    pass_at_1_interval: tuple[float, float]
    cons_at_k: float
    cons_at_k_interval: tuple[float, float]
    versions: tuple[int, int]
    response_tokens: float
    group_ids: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    created: float = 0.0
    data: str = ""
    rewarder: str = ""
    marks: tuple[str, ...] = ()
    examples: tuple[GroupRef, ...] = ()

    @property
    def judged_share(self) -> float:
        """The judged share of the samples asked for. Records of earlier versions lack it: 1 then, or 0 without a question."""
        asked = self.metrics.get("questions_asked", 0.0) * self.k
        if not asked or "samples_judged" not in self.metrics:
            return float(self.questions > 0)
        return self.metrics["samples_judged"] / asked

    @property
    def doubt(self) -> str:
        """Why its figures are unreliable; empty if enough answers were judged."""
        if not self.questions:
            return "nothing could be judged"
        return f"only {self.judged_share:.0%} of its answers were judged" if self.judged_share < JUDGED_ENOUGH else ""

    def pack(self) -> dict[str, Json]:
        return {
            "name": self.name, "step": self.step, "stage": self.stage, "questions": self.questions, "k": self.k,
            "pass_at_1": self.pass_at_1, "pass_at_1_interval": list(self.pass_at_1_interval), "cons_at_k": self.cons_at_k,
            "cons_at_k_interval": list(self.cons_at_k_interval), "versions": list(self.versions),
            "response_tokens": self.response_tokens, "group_ids": list(self.group_ids),
            "dropped": [list(d) for d in self.dropped], "metrics": dict(self.metrics), "created": self.created,
            **pack_extras(self, _EXTRAS),
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Evaluation:
        low, high = wire["pass_at_1_interval"]
        clow, chigh = wire["cons_at_k_interval"]
        first, last = wire["versions"]
        return cls(
            name=text(wire["name"]),
            step=integer(wire["step"]),
            stage=integer(wire["stage"]),
            questions=integer(wire["questions"]),
            k=integer(wire["k"]),
            pass_at_1=number(wire["pass_at_1"]),
            pass_at_1_interval=(number(low), number(high)),
            cons_at_k=number(wire["cons_at_k"]),
            cons_at_k_interval=(number(clow), number(chigh)),
            versions=(integer(first), integer(last)),
            response_tokens=number(wire["response_tokens"]),
            group_ids=strings(wire["group_ids"]),
            dropped=dropped_of(wire["dropped"]),
            metrics=numbers(wire["metrics"]),
            created=number(wire["created"]),
            **read_extras(wire, _EXTRAS),
        )


_EXTRAS = {
    "data": Extra("", text), "rewarder": Extra("", text), "marks": Extra((), strings, list),
    "examples": Extra((), groups_of, pack_groups),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Artefact:
    """Something that a stage made for later stages: a data set or a model. Ends the groups that it was made from.

    ``kind`` is ``documents``, ``model``, or ``rows`` (which rows of a source a stage asks, by a curriculum); ``path`` is in the run's directory, ``sha256`` is
    that of the file (for a model: of its weights).
    ``kept`` are the groups and samples that went into it, by log position; ``dropped`` are the others, with reasons.
    """

    TYPE: ClassVar[str] = "artefact"
    name: str
    stage: int
    step: int
    kind: str
    path: str
    sha256: str = ""
    kept: tuple[GroupRef, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Json] = field(default_factory=dict)
    created: float = 0.0
    schema: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require(bool(self.name), "name", self.name, "a non-empty name")
        require(self.stage >= 0 and self.step >= 0, "stage, step", (self.stage, self.step), "at least 0")
        require(self.kind in ARTEFACT_KINDS, "kind", self.kind, f"one of {ARTEFACT_KINDS}")

    @property
    def group_ids(self) -> tuple[str, ...]:
        """The groups that end here and of which samples were kept."""
        return tuple(ref.group_id for ref in self.kept)

    def pack(self) -> dict[str, Json]:
        return {
            "name": self.name, "stage": self.stage, "step": self.step, "kind": self.kind, "path": self.path, "sha256": self.sha256,
            "kept": pack_groups(self.kept), "dropped": [list(d) for d in self.dropped], "metrics": dict(self.metrics),
            "about": dict(self.about), "created": self.created,
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Artefact:
        return cls(
            name=text(wire["name"]),
            stage=integer(wire["stage"]),
            step=integer(wire["step"]),
            kind=text(wire["kind"]),
            path=text(wire["path"]),
            sha256=text(wire["sha256"]),
            kept=groups_of(wire["kept"]),
            dropped=dropped_of(wire["dropped"]),
            metrics=numbers(wire["metrics"]),
            about=mapping(wire["about"]),
            created=number(wire["created"]),
        )


ARTEFACT_KINDS = ("documents", "model", "rows")
Ending = Evaluation | Artefact
"""The records that end the groups of a collection: ``group_ids`` and ``dropped`` are all of them."""
