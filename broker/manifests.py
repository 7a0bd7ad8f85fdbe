"""The records of the ``steps`` topic: manifests (the write-ahead log of training), their results, and evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from broker.wire import (
    Extra,
    Json,
    Position,
    integer,
    number,
    numbers,
    offsets,
    pack_extras,
    pairs,
    position,
    read_extras,
    require,
    strings,
    text,
)  # fmt: skip


class VoteRef(NamedTuple):
    """The position of one rewarder's vote in the ``rewards`` topic."""

    rewarder: str
    position: Position


class SampleRef(NamedTuple):
    """The position of one sample in the ``trajectories`` topic, and those of its votes."""

    sample: int
    position: Position
    votes: tuple[VoteRef, ...]


class GroupRef(NamedTuple):
    """One group of a manifest: its prompt and its samples, in the order in which they are trained."""

    group_id: str
    prompt: Position
    samples: tuple[SampleRef, ...]


class Dropped(NamedTuple):
    """A group that ends without being trained, and why (``stale``, ``zero_variance``, ``incomplete``, ``dead_letter``...)."""

    group_id: str
    reason: str
    tokens: int


class Era(NamedTuple):
    """From prompt ``start`` on, a data source had ``size`` rows; its first epoch over them has issue ``first_issue``."""

    start: int
    size: int
    first_issue: int
    fingerprint: str


class Origin(NamedTuple):
    """The origin of a forked run: run ``run`` in directory ``where``, with its log at ``url``, at policy version ``step``, whose weights
    have this fingerprint (``learner.training.trainer.state_sha256``)."""

    run: str
    where: str
    url: str
    step: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PlannerState:
    """What the planner needs to continue after a manifest; it recovers everything else from the log.

    ``cursor`` is the number of prompts fed from each data source. ``outstanding`` are the groups that are fed but not
    ended. ``prompts``, ``trajectories``, ``rewards`` and ``deadletters`` hold for each partition the offset below which
    nothing is needed again; ``fed`` the offset after the last prompt that this state knows. ``eras`` map each data source's prompt
    numbers to rows. ``missing`` are numbers below the cursor that are not fed yet.
    """

    cursor: Mapping[str, int] = field(default_factory=dict)
    outstanding: tuple[str, ...] = ()
    fed: Mapping[int, int] = field(default_factory=dict)
    prompts: Mapping[int, int] = field(default_factory=dict)
    trajectories: Mapping[int, int] = field(default_factory=dict)
    rewards: Mapping[int, int] = field(default_factory=dict)
    deadletters: Mapping[int, int] = field(default_factory=dict)
    eras: Mapping[str, tuple[Era, ...]] = field(default_factory=dict)
    missing: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def pack(self) -> dict[str, Json]:
        return {
            "cursor": dict(self.cursor), "outstanding": list(self.outstanding), "fed": pairs(self.fed),
            "prompts": pairs(self.prompts), "trajectories": pairs(self.trajectories), "rewards": pairs(self.rewards),
            "deadletters": pairs(self.deadletters), **pack_extras(self, _EXTRAS_OF_STATE),
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> PlannerState:
        return cls(
            cursor={text(k): integer(v) for k, v in wire["cursor"].items()},
            outstanding=strings(wire["outstanding"]),
            fed=offsets(wire["fed"]),
            prompts=offsets(wire["prompts"]),
            trajectories=offsets(wire["trajectories"]),
            rewards=offsets(wire["rewards"]),
            deadletters=offsets(wire["deadletters"]),
            **read_extras(wire, _EXTRAS_OF_STATE),
        )


def _eras(value: Json) -> dict[str, tuple[Era, ...]]:
    return {
        text(name): tuple(Era(integer(a), integer(n), integer(i), text(f)) for a, n, i, f in eras)
        for name, eras in value.items()
    }


def _missing(value: Json) -> dict[str, tuple[int, ...]]:
    return {text(name): tuple(integer(n) for n in numbers_) for name, numbers_ in value.items()}


_EXTRAS_OF_STATE = {
    "eras": Extra({}, _eras, lambda eras: {name: [list(e) for e in found] for name, found in eras.items()}),
    "missing": Extra({}, _missing, lambda missing: {name: list(found) for name, found in missing.items()}),
}


MANIFEST_KINDS = ("step", "weights", "close", "set_aside", "fork")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The order to make one policy version: durable before it is executed.

    ``kind`` ``step``: train ``groups`` in this order; the result is policy version ``step``. ``weights``: version
    ``step`` is the checkpoint in directory ``weights`` (after supervised training, or another model).
    ``close``: no new version; groups left over at the end of a stage are dropped. ``set_aside``: the manifest of step ``step`` could not be executed,
    for the reason ``why``: its groups end untrained, and version ``step`` is the version before it unchanged. ``fork``:
    the first of its log; version ``step`` is that of another run, ``origin``. ``dropped`` are all groups that ended
    untrained since the manifest before. ``stage`` is the index of the run file's stage. ``metrics`` tell of all groups that
    were judged since the manifest before, dropped ones included. ``reward_rule`` says how votes became rewards (see
    ``learner.planning.rewards``). ``again`` is the set-aside step whose groups are tried again here.
    """

    TYPE: ClassVar[str] = "manifest"
    step: int
    stage: int
    kind: str
    groups: tuple[GroupRef, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    weights: str = ""
    state: PlannerState = PlannerState()
    metrics: Mapping[str, float] = field(default_factory=dict)
    created: float = 0.0
    why: str = ""
    reward_rule: int = 1
    origin: Origin | None = None
    again: int = 0

    def __post_init__(self) -> None:
        require(self.step >= 0 and self.stage >= 0, "step, stage", (self.step, self.stage), "at least 0")
        require(self.kind in MANIFEST_KINDS, "kind", self.kind, f"one of {MANIFEST_KINDS}")
        require(
            bool(self.groups) if self.kind == "step" else self.kind == "set_aside" or not self.groups,
            "groups",
            len(self.groups),
            "groups with kind 'step' or 'set_aside' only",
        )
        require(
            (self.kind == "weights") == bool(self.weights),
            "weights",
            self.weights,
            "a directory with kind 'weights' only",
        )
        require(
            (self.kind == "fork") == (self.origin is not None), "origin", self.origin, "a run with kind 'fork' only"
        )

    @property
    def schema(self) -> int:
        return 2 if self.kind in ("set_aside", "fork") else 1

    def pack(self) -> dict[str, Json]:
        return {
            "step": self.step, "stage": self.stage, "kind": self.kind,
            "groups": pack_groups(self.groups), "dropped": [list(d) for d in self.dropped], "weights": self.weights, "state": self.state.pack(), "metrics": dict(self.metrics), "created": self.created,
            **pack_extras(self, _EXTRAS_OF_MANIFEST),
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> Manifest:
        return cls(
            step=integer(wire["step"]),
            stage=integer(wire["stage"]),
            kind=text(wire["kind"]),
            groups=groups_of(wire["groups"]),
            dropped=dropped_of(wire["dropped"]),
            weights=text(wire["weights"]),
            state=PlannerState.unpack(wire["state"]),
            metrics=numbers(wire["metrics"]),
            created=number(wire["created"]),
            **read_extras(wire, _EXTRAS_OF_MANIFEST),
        )


def _origin(value: Json) -> Origin:
    run, where, url, step, sha256 = value
    return Origin(text(run), text(where), text(url), integer(step), text(sha256))


_EXTRAS_OF_MANIFEST = {
    "why": Extra("", text),
    "reward_rule": Extra(1, integer),
    "origin": Extra(None, _origin, list),
    "again": Extra(0, integer),
}


def pack_groups(groups: tuple[GroupRef, ...]) -> list[Json]:
    def sample(s: SampleRef) -> list[Json]:
        return [s.sample, list(s.position), [[v.rewarder, list(v.position)] for v in s.votes]]

    return [[g.group_id, list(g.prompt), [sample(s) for s in g.samples]] for g in groups]


def groups_of(value: Json) -> tuple[GroupRef, ...]:
    def sample(w: Json) -> SampleRef:
        index, where, votes = w
        return SampleRef(integer(index), position(where), tuple(VoteRef(text(r), position(p)) for r, p in votes))

    return tuple(GroupRef(text(g), position(p), tuple(sample(s) for s in samples)) for g, p, samples in value)


def dropped_of(value: Json) -> tuple[Dropped, ...]:
    return tuple(Dropped(text(g), text(r), integer(t)) for g, r, t in value)


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one optimizer step, of any stage. After a redo a step may have two; the last one counts.

    ``step`` is the policy version after it; ``stage_step`` counts within the stage. ``phases`` are in seconds. A supervised step records its
    data: ``documents`` are the number of the first one in the stage, the count, and a digest of their tokens in order; ``rows`` are the rows
    of each source, as runs of (first row, count) in order. Older logs have one record for ten such steps,
    whose documents are those of all ten, and no rows.
    """

    TYPE: ClassVar[str] = "result"
    step: int
    stage: int
    stage_step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    created: float = 0.0
    documents: tuple[int, int, str] | None = None
    rows: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def pack(self) -> dict[str, Json]:
        return {
            "step": self.step, "stage": self.stage, "stage_step": self.stage_step, "metrics": dict(self.metrics),
            "phases": dict(self.phases), "created": self.created, **pack_extras(self, _EXTRAS_OF_RESULT),
        }  # fmt: skip

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> StepResult:
        return cls(
            integer(wire["step"]),
            integer(wire["stage"]),
            integer(wire["stage_step"]),
            numbers(wire["metrics"]),
            numbers(wire["phases"]),
            number(wire["created"]),
            **read_extras(wire, _EXTRAS_OF_RESULT),
        )


def _documents(value: Json) -> tuple[int, int, str] | None:
    return None if value is None else (integer(value[0]), integer(value[1]), text(value[2]))


def _rows(value: Json) -> dict[str, tuple[tuple[int, int], ...]]:
    return {
        text(name): tuple((integer(first), integer(count)) for first, count in runs) for name, runs in value.items()
    }


_EXTRAS_OF_RESULT = {
    "documents": Extra(None, _documents, list),
    "rows": Extra({}, _rows, lambda rows: {name: [list(run) for run in runs] for name, runs in rows.items()}),
}
