"""Numbers on axes: round ticks, short figures, and many steps drawn as few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Bin:
    """Neighbouring steps drawn as one: the mean of their values, and the smallest and the largest."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values from ``low`` to ``high`` to pixels from ``start`` to ``end``, straight or logarithmically."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def bins(xs: Sequence[float], count: int) -> list[tuple[int, int]]:
    """Index ranges that cut ``xs`` into at most ``count`` runs of nearly one length."""
    size = max(1, math.ceil(len(xs) / count))
    return [(at, min(at + size, len(xs))) for at in range(0, len(xs), size)]


def binned(values: Values, ranges: Sequence[tuple[int, int]]) -> list[Bin | None]:
    """One Bin a range; None where a range holds no finite value."""
    out: list[Bin | None] = []
    for start, end in ranges:
        found = [v for v in values[start:end] if v is not None and math.isfinite(v)]
        out.append(Bin(sum(v / len(found) for v in found), min(found), max(found)) if found else None)
    return out


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``."""
    if not high > low:
        return [low]
    rough = high / count - low / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten from ``low`` to ``high``, at most five."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**i for i in range(first, last + 1, max(1, (last - first) // 4))]


def figure(value: float) -> str:
    """A number in few characters: 1.2M, 12k, 0.25, 3.1e-5."""
    size = abs(value)
    for limit, unit, letter in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if 1e15 > size >= limit:
            return f"{float(f'{value / unit:.3g}'):g}{letter}"
    return f"{value:.4g}" if size >= 1e-3 or size == 0 else f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
