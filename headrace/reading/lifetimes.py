"""The times that a run's log records: the steps of a stretch of training, and the life of every sample in it.

All times are in seconds since the epoch. A time that a daemon wrote into its record is used if it is near the time at which
the log took the record; otherwise the log's own time is used, or none.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from broker.errors import RunFault
from broker.log import Log, Record
from broker.messages import (
    Evaluation,
    Manifest,
    PlannerState,
    PolicyVersion,
    Position,
    Prompt,
    StepResult,
    Trajectory,
    Vote,
)
from broker.topics import Topics
from headrace.reading.heads import Head
from headrace.reading.history import Ended, History, whole
from headrace.reading.records import scan
from headrace.reading.trace import known_steps
from headrace.reading.turns import Spoken, spoken
from headrace.reading.turns import ending as ending_of
from learner.planning.rewards import reward_of

BELIEVED_SECONDS = 86400.0  # allowed difference between the time in a record and the time at which the log took it
SKEW_SECONDS = 60.0  # allowed difference between the clocks of several machines
ORDER = ("checkpoint", "wait_data", "", "pack", "forward_backward", "optimizer", "publish", "other")
"""The course of a step; a phase of another name lies in the place of ``""``."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was executed: ``begin`` <= ``train`` (its first work on the samples) <= ``made`` (its version) <= ``end``."""

    manifest: Manifest
    metrics: Mapping[str, float]
    phases: tuple[tuple[str, float, float], ...]
    begin: float
    train: float
    made: float
    end: float

    @classmethod
    def of(cls, manifest: Manifest, result: StepResult, end: float, after: float) -> Step:
        """Lay the phases in front of ``end``, but not before ``after``, the end of the step before."""
        course = {name: s for name, s in result.phases.items() if math.isfinite(s) and s >= 0}
        place = {name: ORDER.index(name) if name in ORDER else ORDER.index("") for name in course}
        names, end = sorted(course, key=place.__getitem__), max(end, after)
        bounds = [end]
        for name in reversed(names):
            bounds.insert(0, max(after, bounds[0] - course[name]))
        phases = tuple((name, *span) for name, span in zip(names, pairwise(bounds), strict=True))
        train = next((start for name, start, _ in phases if place[name] >= ORDER.index("pack")), end)
        made = next((start for name, start, _ in phases if place[name] > ORDER.index("optimizer")), end)
        return cls(manifest, result.metrics, phases, bounds[0], train, made, end)


class Fate(NamedTuple):
    """How a group ended: ``kind`` trained, dropped, evaluated, collected; ``why`` the step, the reason, the evaluation; ``step`` if any."""

    kind: str
    why: str
    at: float
    step: Step | None = None


OTHER = Fate("other", "of another step", 0.0)


@dataclass(slots=True)
class Judgement:
    """One vote: ``begin`` is when its rewarder took the sample up, waiting for a slow one included."""

    vote: Vote
    begin: float
    end: float

    @property
    def shown(self) -> str:
        return self.vote.outcome if self.vote.value is None else f"{self.vote.value:.4g}"


@dataclass(slots=True)
class Sample:
    """One sample: ``started`` is None where its engine did not say. ``spans`` are (version, tokens)."""

    group_id: str
    index: int
    actor: str
    started: float | None
    ended: float
    spans: tuple[tuple[int, int], ...]
    tokens: int
    weights: Mapping[str, float]
    turns: tuple[Spoken, ...] = ()
    ending: str = ""
    answered: float = 0.0
    """Of an episode: its turns, how it ended, and how many seconds its environment took to end it."""
    votes: dict[str, Judgement] = field(default_factory=dict)

    @property
    def reward(self) -> float | None:
        """By the learner's own rule; None where it cannot be judged, or is not yet."""
        return reward_of(self.weights, {name: judgement.vote for name, judgement in self.votes.items()})

    @property
    def judged(self) -> float:
        """When its last vote was there, or when it was sampled."""
        return max((v.end for v in self.votes.values()), default=self.ended)


@dataclass(slots=True)
class Stretch:
    """All that the log tells of steps ``first`` to ``last``; ``missing`` counts the samples that are no longer there."""

    begin: float
    end: float
    steps: list[Step] = field(default_factory=list)
    planned: list[int] = field(default_factory=list)
    endings: list[Ended] = field(default_factory=list)
    published: list[tuple[int, float]] = field(default_factory=list)
    fates: dict[str, Fate] = field(default_factory=dict)
    fed: dict[str, float] = field(default_factory=dict)
    samples: dict[tuple[str, int], Sample] = field(default_factory=dict)
    trained: set[tuple[str, int]] = field(default_factory=set)
    missing: int = 0

    def fate(self, sample: Sample) -> Fate:
        """How a sample ended: with its group, but that one which could not be judged is left out of a group that is trained."""
        fate = self.fates.get(sample.group_id, OTHER)
        if fate.kind == "trained" and (sample.group_id, sample.index) not in self.trained:
            return Fate("dropped", "unjudged", fate.at)
        return fate


def executed(history: History, manifests: Iterable[Manifest], heads: Iterable[Head]) -> list[Step]:
    """The steps that were executed, in order, each behind the one before."""
    out: list[Step] = []
    for manifest, head in zip(manifests, heads, strict=True):
        done = history.executed(head)
        if done is not None:
            out.append(Step.of(manifest, *done, out[-1].end if out else 0.0))
    return out


def stretch(log: Log, topics: Topics, first: int, last: int) -> Stretch:
    """Read steps ``first`` to ``last``, as far as they are planned. Raises RunFault if none of them is."""
    history = History.around(log, topics, first, last)
    heads = [head for head in history.manifests if head.kind == "step" and first <= head.step <= last]
    if not heads:
        raise RunFault(f"the log of {topics.run} has no step {first}..{last}{known_steps(log, topics)}")
    before = [head for head in history.manifests if head.offset < heads[0].offset][-1:]
    found = list(whole(log, topics, [*before, *heads]))
    chosen = found[len(before) :]
    steps = executed(history, found, [*before, *heads])
    steps = [step for step in steps if step.manifest is not found[0] or not before]
    begin = steps[0].begin if steps else heads[0].at
    out = Stretch(begin, max([h.at for h in heads] + [s.end for s in steps]), steps, [m.step for m in chosen])
    out.endings = [ended for ended in history.endings if ended.at >= begin]
    out.fates = _fates(zip(chosen, heads, strict=True), steps, out.endings, history.aside)
    _read(log, topics, out, found[0].state if before else PlannerState(), chosen)
    return out


def _fates(
    chosen: Iterable[tuple[Manifest, Head]], steps: Iterable[Step], endings: Iterable[Ended], aside: Collection[int]
) -> dict[str, Fate]:
    fates, done = {}, {step.manifest.step: step for step in steps}
    for manifest, head in chosen:
        kind, why = ("dropped", "set_aside") if manifest.step in aside else ("trained", f"step {manifest.step}")
        for group in manifest.groups:
            fates[group.group_id] = Fate(kind, why, head.at, done.get(manifest.step))
        fates |= {d.group_id: Fate("dropped", d.reason, head.at) for d in manifest.dropped}
    for ending, at in endings:
        kind = "evaluated" if isinstance(ending, Evaluation) else "collected"
        fates |= {group_id: Fate(kind, ending.name, at) for group_id in ending.group_ids}
        fates |= {d.group_id: Fate(kind, f"{ending.name}, dropped: {d.reason}", at) for d in ending.dropped}
    return fates


def _read(log: Log, topics: Topics, out: Stretch, before: PlannerState, manifests: Iterable[Manifest]) -> None:
    """The prompts, samples and votes, from what was outstanding when the first step was planned."""
    until = out.end + SKEW_SECONDS
    refs = [(g.group_id, ref) for m in manifests for g in m.groups for ref in g.samples]
    places = {(group_id, ref.sample, ""): ref.position for group_id, ref in refs}
    places |= {(group_id, ref.sample, v.rewarder): v.position for group_id, ref in refs for v in ref.votes}
    for record, message in scan(log, topics.prompts, before.prompts, until):
        if isinstance(message, Prompt):
            out.fed.setdefault(message.group_id, record.timestamp)
    for record, message in scan(log, topics.trajectories, before.trajectories, until):
        if isinstance(message, Trajectory) and _this(places, (message.group_id, message.index, ""), record):
            out.samples.setdefault((message.group_id, message.index), _sample(message, record))
    for record, message in scan(log, topics.rewards, before.rewards, until):
        if isinstance(message, Vote) and _this(places, (message.group_id, message.index, message.rewarder), record):
            sample = out.samples.get((message.group_id, message.index))
            if sample is not None:
                sample.votes.setdefault(message.rewarder, _judgement(message, record))
    out.trained = {(group_id, ref.sample) for group_id, ref in refs}
    out.missing = len(out.trained - out.samples.keys())
    out.published = [(m.version, r.timestamp) for r, m in scan(log, topics.policy) if isinstance(m, PolicyVersion)]


def _this(places: Mapping[tuple[str, int, str], Position], key: tuple[str, int, str], record: Record) -> bool:
    """Whether the record is the one that was trained, where there are several of one name."""
    return places.get(key, record.position) == record.position


def _sample(message: Trajectory, record: Record) -> Sample:
    ended = _near(message.created, record.timestamp) or record.timestamp
    bounds = [span.start for span in message.versions] + [len(message.tokens)]
    spans = tuple((span.version, end - span.start) for span, end in zip(message.versions, bounds[1:], strict=True))
    started = _near(message.started, record.timestamp)
    return Sample(
        message.group_id, message.index, message.actor, None if started is None else min(started, ended), ended, spans,
        message.response_tokens, message.rewards, tuple(spoken(message)), ending_of(message) if message.environment else "",
        message.replies[-1].seconds if message.replies else 0.0,
    )  # fmt: skip


def _judgement(vote: Vote, record: Record) -> Judgement:
    end = _near(vote.created, record.timestamp) or record.timestamp
    begin = _near(end - vote.seconds, end) or end
    return Judgement(vote, min(begin, end), end)


def _near(told: float, taken: float) -> float | None:
    return told if told > 0 and abs(told - taken) <= BELIEVED_SECONDS else None
