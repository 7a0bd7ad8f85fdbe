"""Rewards that compare the samples of a group: how hard the question is, how different the answers are, which answer
wins.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

from broker import plugins
from broker.errors import MessageError, RunFileError
from broker.messages import Trajectory
from monitoring.writing import terms
from rewarders.beside import place
from rewarders.inner import Inner, pass_rate
from rewarders.parts import part
from rewarders.rewarder import GroupRewarder, Reward


@dataclass(frozen=True)
class Difficulty(GroupRewarder):
    """1 - the group's pass rate, the same for each of its samples: a figure to watch, or to weight a curriculum by.

    A reward that is equal for all samples of a group gives no gradient. ``correct`` and ``threshold`` as in
    ``CalibratedLength``. Abstains where ``correct`` judges none of the group.
    """

    correct: str | Mapping[str, Any] = "rewarders.math:MathAccuracy"
    threshold: float = 0.5
    same_for_group: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self._correct

    @cached_property
    def _correct(self) -> Inner:
        return Inner(self.correct)

    def judge(self, samples: Sequence[Trajectory]) -> Sequence[Reward | None]:
        rate = pass_rate(self._correct.judge(samples), self.threshold)
        return [None if rate is None else Reward(1 - rate, f"pass rate {rate:.2f}")] * len(samples)


@dataclass(frozen=True)
class Diversity(GroupRewarder):
    """How different a sample is from the others of its group, in [0, 1]: 1 - the mean Jaccard index of their sets of n-grams of words.

    A group of one abstains. ``sees`` is the part that is compared; two texts without words are equal.
    """

    n: int = 2
    sees: str = "thought"

    def __post_init__(self) -> None:
        part(self.sees)
        if self.n < 1:
            raise MessageError(f"n = {self.n}; it must be at least 1")

    def judge(self, samples: Sequence[Trajectory]) -> Sequence[Reward | None]:
        if len(samples) < 2:
            return [None] * len(samples)
        grams = [self._grams(part(self.sees)(sample.text, "")) for sample in samples]
        shared = [[_jaccard(a, b) for b in grams] for a in grams]
        others = len(samples) - 1
        return [Reward(1 - (sum(row) - row[i]) / others) for i, row in enumerate(shared)]

    def _grams(self, text: str) -> frozenset[tuple[str, ...]]:
        words = terms(text)
        return frozenset(tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1))


def _jaccard(a: frozenset[Any], b: frozenset[Any]) -> float:
    union = len(a | b)
    return len(a & b) / union if union else 1.0


class Preference(Protocol):
    """Compares two samples of the same question."""

    def prefer(self, first: Trajectory, second: Trajectory) -> float:
        """How likely ``first`` is the better one, in [0, 1]; 0.5 is a draw."""
        ...


@dataclass(frozen=True)
class Tournament(GroupRewarder):
    """The share of its matches that a sample wins against others of its group, in [0, 1]; a draw is half a win.

    ``judge_of_pairs`` makes the class that has ``prefer(first, second)``: a table with ``use`` and its options, such as
    ``rewarders.judge:PairJudge``. Each sample meets ``opponents`` others (an even number; 0: all), drawn with the
    group's id as the seed; each pair is shown in both orders, because judges favour one position. ``parallel`` matches
    run at a time. A group of one abstains.
    """

    judge_of_pairs: str | Mapping[str, Any] = "rewarders.judge:PairJudge"
    opponents: int = 0
    both_orders: bool = True
    parallel: int = 8

    def __post_init__(self) -> None:
        _ = self._preference

    @cached_property
    def _preference(self) -> Preference:
        table = {"use": self.judge_of_pairs} if isinstance(self.judge_of_pairs, str) else dict(self.judge_of_pairs)
        use = table.pop("use", "")
        made: Preference = plugins.build(use, table, place(), "judge_of_pairs")
        if not callable(getattr(made, "prefer", None)):
            raise RunFileError(f"judge_of_pairs use = {use!r} has no prefer(first, second)")
        return made

    def judge(self, samples: Sequence[Trajectory]) -> Sequence[Reward | None]:
        if len(samples) < 2:
            return [None] * len(samples)
        won, played = [0.0] * len(samples), [0] * len(samples)
        pairs = list(self.pairs(len(samples), samples[0].group_id))
        with ThreadPoolExecutor(max(1, self.parallel)) as pool:
            shares = list(pool.map(lambda pair: self._match(samples[pair[0]], samples[pair[1]]), pairs))
        for (a, b), share in zip(pairs, shares, strict=True):
            won[a] += share
            won[b] += 1 - share
            played[a] += 1
            played[b] += 1
        return [Reward(w / n, f"won {w:g} of {n} matches") for w, n in zip(won, played, strict=True)]

    def pairs(self, size: int, seed: str) -> Iterator[tuple[int, int]]:
        """The matches of a group: its samples form a circle in an order drawn from ``seed``, and each meets its nearest
        neighbours.
        """
        order = list(range(size))
        random.Random(seed).shuffle(order)
        reach = size // 2 if self.opponents <= 0 else min(size // 2, max(1, (self.opponents + 1) // 2))
        met: set[tuple[int, int]] = set()
        for step in range(1, reach + 1):
            for i in range(size):
                pair = (order[i], order[(i + step) % size])
                if pair not in met and pair[::-1] not in met:
                    met.add(pair)
                    yield pair

    def _match(self, a: Trajectory, b: Trajectory) -> float:
        share = self._preference.prefer(a, b)
        return (share + 1 - self._preference.prefer(b, a)) / 2 if self.both_orders else share
