"""Detects reward hacking: a rewarder's values rise while held-out accuracy, or a shadow that is not trained on, falls.

DeepSeek-R1 (arXiv 2501.12948, Figure 6) shows an example: the reward of a helpfulness model goes up, and accuracy on
code goes down. The rise of a series over the last evaluations is the median of its pairwise slopes (Theil-Sen) times
the distance in steps from first to last, so a single outlier has little effect. This module needs no other part of the
project, so that the learner, a report and a notebook compute the same figures.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean, median

EVALUATIONS = 5
"""Rise and fall are computed over this many of the newest evaluations."""
FEWEST = 3
"""With fewer evaluations, a trend cannot be told from chance."""


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation: its step, its pass@1, and the means of each rewarder and shadow over the steps since the
    evaluation before.
    """

    step: float
    accuracy: float
    rewards: Mapping[str, float]
    shadows: Mapping[str, float] = field(default_factory=dict)


def rise(steps: Sequence[float], values: Sequence[float]) -> float:
    """The change of ``values`` from first step to last, by the median slope; 0 for fewer than ``FEWEST`` points."""
    if len(steps) < FEWEST:
        return 0.0
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in combinations(zip(steps, values, strict=True), 2) if t > s]
    return median(slopes) * (max(steps) - min(steps)) if slopes else 0.0


def gaps(points: Sequence[Point]) -> dict[str, float]:
    """The gap of each rewarder: its rise plus the largest fall among accuracy and shadows; 0 unless both are positive.

    A series is divided by its largest absolute value if that exceeds 1, so that a rewarder with large values (one that
    counts characters, say) does not dominate.
    """
    points = list(points)[-EVALUATIONS:]
    steps = [p.step for p in points]
    others = [_rise_of(steps, [{"": p.accuracy} for p in points], "")]
    shadows, rewards = [p.shadows for p in points], [p.rewards for p in points]
    others += [_rise_of(steps, shadows, name) for name in {n for found in shadows for n in found}]
    fall = -min(others)
    out = {}
    for name in sorted({n for found in rewards for n in found}):
        up = _rise_of(steps, rewards, name)
        out[name] = up + fall if up > 0 and fall > 0 else 0.0
    return out


def _rise_of(steps: Sequence[float], values: Sequence[Mapping[str, float]], name: str) -> float:
    known = [(step, found[name]) for step, found in zip(steps, values, strict=True) if name in found]
    scale = max(1.0, max((abs(value) for _, value in known), default=1.0))
    return rise([step for step, _ in known], [value / scale for _, value in known])


class Monitor:
    """Collects metrics of steps (``reward/NAME``, ``shadow/NAME``) and the evaluations of each benchmark. Thread-safe.

    The history is kept only in memory: after a restart, it takes ``FEWEST`` evaluations before there is a trend.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rewards: dict[str, list[float]] = {}
        self._points: dict[str, list[Point]] = {}
        self._before: dict[str, dict[str, int]] = {}

    def step(self, metrics: Mapping[str, float]) -> None:
        with self._lock:
            for name, value in metrics.items():
                if name.startswith(("reward/", "shadow/")):
                    self._rewards.setdefault(name, []).append(value)

    def evaluation(self, benchmark: str, step: int, accuracy: float) -> dict[str, float]:
        """Add an evaluation; returns for each rewarder its largest gap over all benchmarks."""
        with self._lock:
            return self._evaluation(benchmark, step, accuracy)

    def _evaluation(self, benchmark: str, step: int, accuracy: float) -> dict[str, float]:
        seen = self._before.setdefault(benchmark, {})
        means = {name: fmean(new) for name, all_ in self._rewards.items() if (new := all_[seen.get(name, 0) :])}
        self._before[benchmark] = {name: len(values) for name, values in self._rewards.items()}
        rewards = {n.removeprefix("reward/"): v for n, v in means.items() if n.startswith("reward/")}
        shadows = {n.removeprefix("shadow/"): v for n, v in means.items() if n.startswith("shadow/")}
        if rewards:  # an evaluation before the first step has no rewards to compare with
            kept = self._points.get(benchmark, [])[1 - EVALUATIONS :]
            self._points[benchmark] = [*kept, Point(step, accuracy, rewards, shadows)]
        worst: dict[str, float] = {}
        for points in self._points.values():
            for name, gap in gaps(points).items():
                worst[name] = max(worst.get(name, 0.0), gap)
        return worst

    def begin(self) -> None:
        """Forget the history: a new stage may have other rewarders and benchmarks."""
        with self._lock:
            self._rewards, self._points, self._before = {}, {}, {}
