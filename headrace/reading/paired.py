"""Two checkpoints on the same questions: the difference of pass@1, its paired bootstrap interval, and an exact test.

The sign test counts the questions that one side answers right more often than the other; with one sample a question it is McNemar's exact test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from learner.planning.intervals import Interval, bootstrap

Marks = str
"""A sign for each sample of a question, as ``broker.messages.Evaluation`` has them."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One question: its key, and the share of right answers of either side."""

    key: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        return self.second - self.first


@dataclass(frozen=True, slots=True)
class Paired:
    """``difference`` is the second's pass@1 minus the first's over ``questions`` that both have; ``p`` is two-sided.

    ``better`` are the questions that the second answers right more often, ``worse`` less often, the largest difference first.
    ``alone`` counts the questions that only one of them has.
    """

    questions: int
    first: float
    second: float
    difference: float
    interval: Interval
    test: str
    p: float
    better: tuple[Pair, ...]
    worse: tuple[Pair, ...]
    alone: tuple[int, int]


def paired(first: Mapping[str, Marks], second: Mapping[str, Marks]) -> Paired | None:
    """Compare on the questions that both have judged answers to, by key; None where there is none."""
    mine, theirs = _shares(first), _shares(second)
    pairs = [Pair(key, share, theirs[key]) for key, share in mine.items() if key in theirs]
    if not pairs:
        return None
    better = sorted((p for p in pairs if p.difference > 0), key=lambda p: (-p.difference, p.key))
    worse = sorted((p for p in pairs if p.difference < 0), key=lambda p: (p.difference, p.key))
    differences = [p.difference for p in pairs]
    single = all(len(side[p.key]) == 1 for p in pairs for side in (first, second))
    return Paired(
        questions=len(pairs),
        first=fmean(p.first for p in pairs),
        second=fmean(p.second for p in pairs),
        difference=fmean(differences),
        interval=_interval(differences),
        test="McNemar's exact test" if single else "exact sign test",
        p=sign_test(len(better), len(worse)),
        better=tuple(better),
        worse=tuple(worse),
        alone=(len(mine) - len(pairs), len(theirs) - len(pairs)),
    )


def _interval(differences: Sequence[float]) -> Interval:
    """The bootstrap's; one question says nothing about others."""
    return bootstrap(differences) if len(differences) > 1 else (-1.0, 1.0)


def sign_test(more: int, fewer: int) -> float:
    """Two-sided p of so many differences of either sign, if each sign were as likely (exact; ties are left out)."""
    n = more + fewer
    tail = ways = 1
    for i in range(
        min(more, fewer)
    ):  # each binomial coefficient from the one before: thousands of questions take no time
        ways = ways * (n - i) // (i + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)


def _shares(questions: Mapping[str, Marks]) -> dict[str, float]:
    """The share of right answers among the judged ones; questions without any are left out."""
    found = {}
    for key, marks in questions.items():
        judged = marks.count("1") + marks.count("0")
        if judged:
            found[key] = marks.count("1") / judged
    return found
