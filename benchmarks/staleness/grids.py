"""Which settings are compared. A grid is a list in the order in which its results are of use; those that are known are not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import get_args

from benchmarks.staleness.lab import Setting
from learner.config import ObjectiveTable

OBJECTIVES: tuple[str, ...] = get_args(ObjectiveTable.model_fields["name"].annotation)
LAGS, RATES, MOMENTA, BASES = (0, 2, 4, 8), (3e-4, 5e-4, 1e-3), (0.0, 0.9), (0, 1, 2, 3, 4)


def full() -> Iterator[Setting]:
    """Everything on every base: about a day of one core."""
    for base, lag, beta1, lr, name in product(BASES, LAGS, MOMENTA, RATES, OBJECTIVES):
        yield Setting(name, lag, lr, beta1, base)


def screen() -> Iterator[Setting]:
    """Every objective at lag 8 on one base, two rates, momentum off."""
    for lr, name in product((5e-4, 1e-3), OBJECTIVES):
        yield Setting(name, 8, lr, 0.0, 1)


def finalists() -> Iterator[Setting]:
    """The best of the screen on every base, beside on-policy GRPO with the recipe's rate."""
    for base in BASES:
        yield Setting("topr", 8, 7e-4, 0.0, base)
        yield Setting("async", 8, 7e-4, 0.0, base, {"weight_cap": 1.0, "advantage_std": "population"})
        yield Setting("grpo", 0, 1e-3, 0.9, base)


GRIDS: dict[str, Callable[[], Iterator[Setting]]] = {"screen": screen, "finalists": finalists, "full": full}
