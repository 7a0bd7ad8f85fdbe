"""Which settings are compared. A grid is a list in the order in which its results are of use; those that are known are not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

from benchmarks.staleness.lab import Setting
from learner.losses.objectives import OBJECTIVES

MASKED = {"advantage_std": "population", "weight_cap": 1.0}
LAGS, RATES, MOMENTA, BASES = (0, 2, 4, 8), (3e-4, 5e-4, 1e-3), (0.0, 0.9), (0, 1, 2, 3, 4)


def full() -> Iterator[Setting]:
    """Everything on every base: about a day of one core."""
    for base, lag, beta1, lr, name in product(BASES, LAGS, MOMENTA, RATES, OBJECTIVES):
        yield Setting(name, lag, lr, beta1, base)


def screen() -> Iterator[Setting]:
    """Every objective at lag 8 on one base, two rates, momentum off."""
    for lr, name in product((7e-4, 3e-4), OBJECTIVES):
        yield Setting(name, 8, lr, 0.0, 0)


def lags() -> Iterator[Setting]:
    """How the result falls with the lag, on one base."""
    for name, lag in product(("grpo", "topr", "cispo", "m2po", "gspo", "tis"), (0, 2, 4, 8, 16)):
        yield Setting(name, lag, 7e-4, 0.0, 0)
    for lag in (2, 4):
        yield default(lag, 0)
    for options, base in product(({"spread": 0.25}, {"spread": 2.0}), (0, 2)):
        yield replace(default(8, base), options=options)
    for options, base in product(({"weight_tokens": 16}, {"weight_cap": 1.0}), (0, 2)):
        yield replace(default(8, base), objective="tis_sequence", options=options)
    for base in BASES:
        yield replace(default(8, base), beta1=0.9)
    for options in ({"weight_cap": 2.0}, {"advantage_std": "none"}, {"tau": 0.0}):
        yield replace(masked(8, 0), options={**MASKED, **options})


def masked(lag: int, base: int) -> Setting:
    """DPPO's mask with negatives and positives alike weighed with at most 1, token by token."""
    return Setting("dppo", lag, 7e-4, 0.0, base, MASKED)


def default(lag: int, base: int) -> Setting:
    """What a learner does unless it is told otherwise, at this task's rate."""
    return Setting("async", lag, 7e-4, 0.0, base)


def proof() -> Iterator[Setting]:
    """The default at several lags on every base, beside on-policy GRPO at the best rate known for it and the plain weight of the sequence, all
    from the same weights."""
    for base in BASES:
        yield default(8, base)
        yield Setting("grpo", 0, 1e-3, 0.9, base)
        yield default(16, base)
        yield default(0, base)
    for base in BASES:
        yield replace(default(8, base), objective="tis_sequence")
    for lag, base in product((4, 2), BASES):
        yield default(lag, base)


def rivals() -> Iterator[Setting]:
    """What comes near the default at lag 8 on base 0, on the other bases."""
    for base, name in product(BASES, ("decoupled", "tis", "topr")):
        yield Setting(name, 8, 7e-4, 0.0, base)
    for lag, base in product((8, 16, 0), BASES):
        yield Setting("tis_sequence", lag, 7e-4, 0.0, base)
        yield masked(lag, base)


def rates() -> Iterator[Setting]:
    """Rates and momentum, with and without stale data, on one base."""
    for lag, name, lr, beta1 in product((8, 0), ("async", "grpo"), RATES, MOMENTA):
        yield Setting(name, lag, lr, beta1, 0)


GRIDS: dict[str, Callable[[], Iterator[Setting]]] = {
    "screen": screen,
    "proof": proof,
    "lags": lags,
    "rivals": rivals,
    "rates": rates,
    "full": full,
}
