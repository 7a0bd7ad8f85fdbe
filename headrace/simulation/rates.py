"""How fast each role of a ring works: given by hand, or measured from the log of a run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from random import Random
from statistics import fmean, median
from typing import Any

import numpy as np

from broker.errors import RunFault, RunFileError
from broker.log import Log
from broker.messages import Prompt, StepResult, Trajectory, Vote
from broker.spelling import nearest
from broker.topics import Topics
from headrace.reading.history import History
from headrace.reading.records import scan

LEAST_STEPS = 4
WARM_STEPS = 3  # of a stage, that are left out: the first ones load, compile, and find queues empty
ENOUGH = 0.15  # spread of a step's tokens, relative to their mean, from which a constant and a slope can be told apart
MOST_GROUPS = 2048  # whose lengths are kept


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of prompts and answers: a log-normal distribution by mean and spread (the standard deviation of the logarithm), or the
    ``groups`` of a recorded run, each with its prompt's length and those of its answers."""

    mean: float = 256.0
    spread: float = 0.6
    prompt: int = 64
    groups: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def group(self, rng: Random, size: int, most: int) -> tuple[int, list[int]]:
        """A prompt's length, and those of ``size`` answers, none above ``most``."""
        if self.groups:
            prompt, answers = self.groups[rng.randrange(len(self.groups))]
            return prompt, [min(most, answers[rng.randrange(len(answers))]) for _ in range(size)]
        middle = np.log(self.mean) - self.spread**2 / 2
        return self.prompt, [max(1, min(most, round(rng.lognormvariate(middle, self.spread)))) for _ in range(size)]


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds, unless said otherwise. A decode step takes ``decode_step`` and ``decode_sample`` more for every sample that is in it."""

    decode_step: float = 0.02
    decode_sample: float = 0.0002
    prompt_token: float = 0.0
    """Of computing a prompt, once a group."""
    learner_step: float = 0.0
    """Of a step, whatever it trains."""
    learner_token: float = 0.0001
    """Of each response token that a step trains."""
    fresh: float = 0.5
    """From the end of a step until engines sample from its weights."""
    judge: Mapping[str, float] = field(default_factory=dict)
    """One judgement, by rewarder; under the empty name of all others."""
    judge_wait: float = 0.01
    """From a sample that is published to the rewarder that begins with it, where none is in front."""
    judge_each: float = 0.001
    """What a judgement costs its rewarder beside judging."""
    flat: float = 0.0
    """Share of groups whose rewards are all the same."""
    characters: float = 4.0
    """Of a token of text."""
    lengths: Lengths = Lengths()

    def judgement(self, rewarder: str) -> float:
        return self.judge.get(rewarder, self.judge.get("", 0.001))

    def with_given(self, given: Mapping[str, Any]) -> Rates:
        """These rates with those of ``--rates`` in their place. Raises RunFileError for a name that is none, or a value that is no number."""
        plain = {f.name for f in fields(self)} - {"lengths", "judge"}
        known = [*sorted(plain), "length", "spread", "prompt", "judge", "judge.NAME"]
        out = self
        for name, value in given.items():
            try:
                number = float(value)  # ".5" is no TOML, and comes as a text
            except (TypeError, ValueError):
                number = -1.0
            if not 0 <= number < math.inf:
                raise RunFileError(f"--rates {name}={value}: a number of at least 0 is expected")
            changed: dict[str, Any] = {name: number}
            if name in plain:
                out = replace(out, **changed)
            elif name == "judge":
                out = replace(out, judge={"": number})
            elif name.startswith("judge."):
                out = replace(out, judge={**out.judge, name.removeprefix("judge."): number})
            elif name in ("length", "spread", "prompt"):
                key = "mean" if name == "length" else name
                kept = out.lengths if name == "prompt" else replace(out.lengths, groups=())
                changed = {key: int(number) if key == "prompt" else number}
                out = replace(out, lengths=replace(kept, **changed))
            else:
                raise RunFileError(f"--rates {name}: no such rate{nearest(name, known)}")
        return out


def settled_steps(log: Log, topics: Topics, stage: int | None = None) -> list[StepResult]:
    """The results of the steps of an RL stage behind its first ones (by default of the first that has enough). Raises RunFault if none has."""
    found: dict[int, list[StepResult]] = defaultdict(list)
    for result in History.of(log, topics).results(reinforced=True):
        if result.stage_step > WARM_STEPS and stage in (None, result.stage):
            found[result.stage].append(result)
    enough = next((results for results in found.values() if len(results) >= LEAST_STEPS), None)
    if enough is None:
        most = max(map(len, found.values()), default=0)
        raise RunFault(
            f"{topics.run} has {most} RL steps behind the first {WARM_STEPS} of a stage; rates are measured by {LEAST_STEPS} at least"
        )
    return enough


def measured(log: Log, topics: Topics, stage: int | None = None) -> Rates:
    """The rates of a recorded run, from the steps of an RL stage. Raises RunFault if it has too few."""
    results = settled_steps(log, topics, stage)
    begin, end = results[0].created, results[-1].created
    samples = [
        m
        for _, m in scan(log, topics.trajectories)
        if isinstance(m, Trajectory) and begin <= m.started and m.created <= end
    ]
    votes = [m for _, m in scan(log, topics.rewards) if isinstance(m, Vote) and not m.shadow]
    prompts = {m.group_id: m for _, m in scan(log, topics.prompts) if isinstance(m, Prompt)}
    if not samples:
        raise RunFault(f"{topics.run} has no samples that tell when they were begun")
    decode_step, decode_sample = decode_of(samples)
    learner_step, learner_token = learner_of(results)
    judge, wait = judging_of(samples, votes)
    ratios = [r.metrics["zero_variance_group_ratio"] for r in results if "zero_variance_group_ratio" in r.metrics]
    return Rates(
        decode_step=decode_step, decode_sample=decode_sample, learner_step=learner_step, learner_token=learner_token,
        fresh=fresh_of(results, samples), judge=judge, judge_wait=wait, judge_each=0.0, flat=fmean(ratios) if ratios else 0.0,
        characters=sum(len(s.text) for s in samples) / max(1, sum(s.response_tokens for s in samples)),
        lengths=lengths_of(samples, prompts),
    )  # fmt: skip


def decode_of(samples: Sequence[Trajectory]) -> tuple[float, float]:
    """Seconds of a decode step, and those that each sample in it adds: least squares over how long samples took beside how many others."""
    tokens, beside, took = [], [], []
    for actor in {s.actor for s in samples}:
        mine = [s for s in samples if s.actor == actor and s.created > s.started]
        times = np.array(sorted({t for s in mine for t in (s.started, s.created)}))
        change = np.zeros(len(times))
        np.add.at(change, np.searchsorted(times, [s.started for s in mine]), 1)
        np.add.at(change, np.searchsorted(times, [s.created for s in mine]), -1)
        under_way = np.concatenate(([0.0], np.cumsum(np.cumsum(change)[:-1] * np.diff(times))))
        for s in mine:
            area = np.interp(s.created, times, under_way) - np.interp(s.started, times, under_way)
            tokens.append(s.response_tokens)
            beside.append(area / (s.created - s.started))
            took.append(s.created - s.started)
    a, b = np.array(tokens, float), np.array(tokens, float) * np.array(beside)
    return positive_fit(a, b, np.array(took))


def positive_fit(a: np.ndarray, b: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The numbers x, z >= 0 for which x a + z b is nearest to y."""
    (x, z), *_ = np.linalg.lstsq(np.stack((a, b), 1), y, rcond=None)
    if x < 0:
        return 0.0, max(0.0, float(b @ y / (b @ b)))
    if z < 0:
        return max(0.0, float(a @ y / (a @ a))), 0.0
    return float(x), float(z)


def learner_of(results: Sequence[StepResult]) -> tuple[float, float]:
    """Seconds per step, and per token of a step; if the steps are too similar to separate the two, all time is
    attributed to tokens.
    """
    tokens = np.array([r.metrics.get("tokens_trained", 0.0) for r in results])
    busy = np.array([sum(s for name, s in r.phases.items() if not name.startswith("wait_")) for r in results])
    keep = busy <= 3 * np.median(busy)  # leave out steps that something else delayed
    tokens, busy = tokens[keep], busy[keep]
    if tokens.mean() <= 0:
        return float(busy.mean()), 0.0
    if tokens.std() < ENOUGH * tokens.mean():
        return 0.0, float(busy.sum() / tokens.sum())
    return positive_fit(np.ones(len(tokens)), tokens, busy)


def judging_of(samples: Sequence[Trajectory], votes: Sequence[Vote]) -> tuple[dict[str, float], float]:
    """Seconds of a judgement by rewarder, with what it costs beside judging; and how long a sample waits for a free rewarder."""
    published = {(s.group_id, s.index): s.created for s in samples}
    judge: dict[str, float] = {}
    waits = list[float]()
    by_rewarder: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        if (vote.group_id, vote.index) in published:
            by_rewarder[vote.rewarder].append(vote)
    for name, cast in by_rewarder.items():
        cast.sort(key=lambda v: v.created)
        spans = [(v.created - v.seconds, v.created) for v in cast]  # samples that are judged together share theirs
        first, last = min(start for start, _ in spans), cast[-1].created
        judge[name] = covered(spans, first, last) * (last - first) / len(cast)
        waits += [v.created - published[v.group_id, v.index] - v.seconds for v in cast]
        queued = [
            (before.created, now.created, now.seconds)
            for before, now in pairwise(cast)
            if published[now.group_id, now.index] < before.created - before.seconds
        ]
        if queued:  # what passes between two judgements where none had to wait for its sample
            passed = sum(now - before for before, now, _ in queued)
            judging = covered([(now - seconds, now) for _, now, seconds in queued], first, last) * (last - first)
            judge[name] += max(0.0, passed - judging) / len(queued)
    wait = float(np.quantile(waits, 0.1)) if waits else Rates().judge_wait
    return judge, max(0.0, wait)


def fresh_of(results: Sequence[StepResult], samples: Sequence[Trajectory]) -> float:
    """From a step's end to the first sample of its weights, where one could begin at once: the lower quartile."""
    first: dict[int, float] = {}
    for sample in samples:
        version = sample.versions[0].version
        first[version] = min(sample.started, first.get(version, sample.started))
    found = [first[r.step] - r.created for r in results if r.step in first]
    return max(0.0, float(np.quantile(found, 0.25))) if found else Rates().fresh


def lengths_of(samples: Sequence[Trajectory], prompts: Mapping[str, Prompt]) -> Lengths:
    """The lengths of the newest groups that were sampled for training."""
    groups: dict[str, tuple[int, list[int]]] = {}
    for s in samples:
        if s.purpose == "train" and s.group_id in prompts:
            groups.setdefault(s.group_id, (s.segments[0].end, []))[1].append(s.response_tokens)
    found = [(prompt, tuple(answers)) for prompt, answers in groups.values()][-MOST_GROUPS:]
    answers = [n for _, lengths in found for n in lengths]
    return Lengths(fmean(answers), 0.0, int(median(p for p, _ in found)), tuple(found))


def covered(spans: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """The share of the time from ``begin`` to ``end`` in which at least one of ``spans`` is under way."""
    total, until = 0.0, begin
    for start, stop in sorted(spans):
        start, stop = max(start, until), min(stop, end)
        if stop > start:
            total += stop - start
        until = max(until, stop)
    return total / (end - begin) if end > begin else 0.0
