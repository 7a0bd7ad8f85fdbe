"""Two rewarders, or two versions of one, compared on the samples that both have judged.

A rewarder is named ``NAME``, or ``NAME@VERSION`` with the beginning of the version that its votes carry. Shadows and backfilled votes count.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from broker.errors import RunFileError
from broker.log import Log
from broker.messages import Vote
from broker.spelling import nearest
from broker.topics import Topics
from headrace.reading.records import scan

EQUAL = 1e-6
"""Values nearer than this are the same verdict."""
MOST_DIFFERENT = 10


@dataclass(frozen=True, slots=True)
class Choice:
    """Whose votes: a rewarder, and the beginning of a version (empty: its votes that count, else its first)."""

    rewarder: str
    version: str = ""

    @classmethod
    def of(cls, text: str) -> Choice:
        name, _, version = text.partition("@")
        return cls(name, version)

    def __str__(self) -> str:
        return f"{self.rewarder}@{self.version}" if self.version else self.rewarder


@dataclass(frozen=True, slots=True)
class Side:
    """One side's votes: how many of each outcome, the mean of its values, and the versions among them."""

    name: str
    values: int
    abstained: int
    errors: int
    mean: float | None
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A sample that the two see most differently."""

    group_id: str
    index: int
    left: float
    right: float
    left_why: str
    right_why: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """``both`` samples have a value from each side. ``agreement`` is the share with the same value; ``correlation`` is Pearson's (None where
    one side gives one value only); ``same_order`` is the share of pairs of a group that both order alike, among those that both order: what
    a group's advantages are made of (None where there is no such pair)."""

    left: Side
    right: Side
    both: int
    agreement: float | None
    correlation: float | None
    same_order: float | None
    most_different: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Key = tuple[str, int]


def compare(log: Log, topics: Topics, left: Choice, right: Choice, most: int = MOST_DIFFERENT) -> Comparison:
    """Read all votes and compare. Raises RunFileError where one side has no vote; it names what there is."""
    known: Counter[tuple[str, str]] = Counter()
    ours: dict[Key, Vote] = {}
    theirs: dict[Key, Vote] = {}
    for _, vote in scan(log, topics.rewards):
        if isinstance(vote, Vote):
            known[vote.rewarder, vote.version] += 1
            for choice, found in ((left, ours), (right, theirs)):
                _take(choice, vote, found)
    for choice, found in ((left, ours), (right, theirs)):
        if not found:
            names = sorted({f"{name}@{version}" if version else name for name, version in known})
            raise RunFileError(
                f"no vote of {choice}{nearest(str(choice), names)}; there are votes of {', '.join(names) or 'nobody'}"
            )
    return _compared(left, ours, right, theirs, most)


def _take(choice: Choice, vote: Vote, found: dict[Key, Vote]) -> None:
    """The first vote of a sample holds, as in training; one that counts goes before a shadow."""
    if vote.rewarder != choice.rewarder or not vote.version.startswith(choice.version):
        return
    before = found.setdefault((vote.group_id, vote.index), vote)
    if before.shadow and not vote.shadow and not choice.version:
        found[vote.group_id, vote.index] = vote


def _compared(left: Choice, ours: dict[Key, Vote], right: Choice, theirs: dict[Key, Vote], most: int) -> Comparison:
    keys = [
        key for key, vote in ours.items() if vote.value is not None and key in theirs and theirs[key].value is not None
    ]
    a = np.array([ours[key].value for key in keys], np.float64)
    b = np.array([theirs[key].value for key in keys], np.float64)
    constant = not keys or np.ptp(a) < EQUAL or np.ptp(b) < EQUAL
    distance = np.abs(a - b)
    worst = heapq.nlargest(most, range(len(keys)), key=lambda i: distance[i])
    return Comparison(
        _side(left, ours.values()), _side(right, theirs.values()), len(keys),
        agreement=float((distance < EQUAL).mean()) if keys else None,
        correlation=None if constant else float(np.corrcoef(a, b)[0, 1]),
        same_order=_same_order(keys, a, b),
        most_different=tuple(_difference(ours[keys[i]], theirs[keys[i]]) for i in worst if distance[i] >= EQUAL),
    )  # fmt: skip


def _side(choice: Choice, votes: Iterable[Vote]) -> Side:
    votes = list(votes)
    outcomes = Counter(vote.outcome for vote in votes)
    values = [vote.value for vote in votes if vote.value is not None]
    mean = float(np.mean(values)) if values else None
    versions = tuple(sorted({vote.version for vote in votes if vote.version}))
    return Side(str(choice), outcomes["value"], outcomes["abstain"], outcomes["error"], mean, versions)


def _same_order(keys: list[Key], a: np.ndarray, b: np.ndarray) -> float | None:
    groups: dict[str, list[int]] = {}
    for place, (group_id, _) in enumerate(keys):
        groups.setdefault(group_id, []).append(place)
    same = pairs = 0
    for places in groups.values():
        for i, j in combinations(places, 2):
            if abs(a[i] - a[j]) >= EQUAL and abs(b[i] - b[j]) >= EQUAL:
                pairs += 1
                same += (a[i] > a[j]) == (b[i] > b[j])
    return same / pairs if pairs else None


def _difference(left: Vote, right: Vote) -> Difference:
    assert left.value is not None and right.value is not None
    return Difference(left.group_id, left.index, left.value, right.value, left.why, right.why)


def lines(found: Comparison) -> Iterator[str]:
    """The comparison for people."""
    for side in (found.left, found.right):
        mean = "no value" if side.mean is None else f"mean {side.mean:.3f}"
        versions = f", versions {', '.join(side.versions)}" if side.versions else ""
        yield f"{side.name}: {side.values} values ({mean}), {side.abstained} abstentions, {side.errors} errors{versions}"
    yield f"judged by both: {found.both} samples"
    for name, value in (
        ("same value", found.agreement), ("correlation", found.correlation), ("same order within a group", found.same_order)
    ):  # fmt: skip
        yield f"{name}: {'cannot be told' if value is None else f'{value:.3f}'}"
    for one in found.most_different:
        yield f"{one.group_id}#{one.index}: {one.left:g} ({one.left_why[:60]}) against {one.right:g} ({one.right_why[:60]})"
