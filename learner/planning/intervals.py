"""95% intervals over questions: a seeded bootstrap, and Wilson's where the bootstrap knows no spread. The same values give the same figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]
Z95 = 1.959964
RESAMPLES = 4000
SEED = 20250122
BLOCK = 1 << 20
"""Numbers drawn at a time."""


def mean_interval(values: Sequence[float]) -> Interval:
    """Of a mean over questions whose values lie in [0, 1]: the bootstrap's 2.5% and 97.5% (questions are drawn anew, with replacement).

    Where all questions have one value, or there is one question, no resample differs: then it is Wilson's interval of that share.
    """
    if len(set(values)) < 2:
        return wilson(values[0] if values else 0.0, len(values))
    return bootstrap(values)


def bootstrap(values: Sequence[float], seed: int = SEED) -> Interval:
    """Percentile interval of the mean (B. Efron, 1979); at least one value."""
    data = np.asarray(values, np.float64)
    chance = np.random.default_rng(seed)
    rows = max(1, BLOCK // len(data))
    means = [
        data[chance.integers(0, len(data), (min(rows, RESAMPLES - at), len(data)))].mean(axis=1)
        for at in range(0, RESAMPLES, rows)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def wilson(share: float, n: int) -> Interval:
    """Wilson's 95% score interval of a proportion (E. B. Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    z2 = Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
