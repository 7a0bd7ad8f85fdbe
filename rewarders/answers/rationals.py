"""Functions of exact numbers; if the result would be too long, they refuse before they compute it."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from broker.errors import HeadraceError

MAX_BITS = 60_000
"""Of numerator and denominator together: 18,000 decimal digits."""
MAX_LOG_BITS = 4000  # of numerator and denominator each, of a number whose logarithm is looked for


class Costly(HeadraceError):
    """The value is too large to compute."""


class Undefined(HeadraceError):
    """The tree has no value of this kind: a division by zero, a set, a variable without a value."""


def bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise Costly("a number is too long")
    return value


def rational_power(base: Fraction, power: Fraction) -> Fraction | None:
    """``base ** power`` if that is known to be rational; None otherwise. Raises Costly, Undefined."""
    if base == 0 and power <= 0:
        raise Undefined("zero to the power of zero or less")
    if abs(power) > 1 << 40 and base not in (0, 1, -1):
        raise Costly("an exponent is too large")
    if base < 0 and power.denominator > 1:
        return None
    if power.denominator > 64:
        return None
    if power.denominator > 1:
        top, bottom = _root(base.numerator, power.denominator), _root(base.denominator, power.denominator)
        if top is None or bottom is None:
            return None
        base = Fraction(top, bottom)
    exponent = power.numerator
    if base in (0, 1):
        return base
    if base == -1:
        return Fraction(-1 if exponent % 2 else 1)
    if (base.numerator.bit_length() + base.denominator.bit_length()) * abs(exponent) > MAX_BITS:
        raise Costly("a power is too long")
    return base**exponent


def _root(value: int, degree: int) -> int | None:
    """The whole ``degree``-th root of ``value``; None if it has none, or is too large for it to be found."""
    if value < 0:
        inner = _root(-value, degree) if degree % 2 else None
        return None if inner is None else -inner
    if degree == 2:
        found = math.isqrt(value)
    else:
        if value.bit_length() > 900:
            return None
        found = round(value ** (1 / degree)) if value else 0
    return next((f for f in (found - 1, found, found + 1) if f >= 0 and f**degree == value), None)


def _whole(value: Fraction, most: int) -> int:
    if value.denominator != 1 or value < 0:
        raise Undefined("a whole number is needed")
    if value > most:
        raise Costly("a factorial is too large")
    return int(value)


def _binomial(n: Fraction, k: Fraction) -> Fraction:
    top, bottom = _whole(n, 1 << 40), _whole(k, 1 << 40)
    bottom = min(bottom, top - bottom)
    if bottom < 0:
        return Fraction(0)
    if bottom * max(1, top.bit_length()) > MAX_BITS:
        raise Costly("a binomial is too large")
    return Fraction(math.comb(top, bottom))


def _exact_log(value: Fraction, base: Fraction = Fraction(10)) -> Fraction | None:
    if value <= 0 or base <= 0 or base == 1:
        raise Undefined("a logarithm of no positive number")
    if max(value.numerator, value.denominator).bit_length() > MAX_LOG_BITS:
        return None
    step = _ln(base)
    ratio = _ln(value) / step if step else 0.0
    bits = base.numerator.bit_length() + base.denominator.bit_length()
    if abs(ratio) * bits > 4 * MAX_LOG_BITS:  # more than a power of this size can have
        return None
    power = Fraction(round(ratio))
    return power if rational_power(base, power) == value else None


def _ln(value: Fraction) -> float:
    if abs(value - 1) < Fraction(1, 2):
        return math.log1p(float(value - 1))
    return math.log(value.numerator) - math.log(value.denominator)


def _exact_root(value: Fraction, degree: Fraction = Fraction(2)) -> Fraction | None:
    if degree.denominator != 1 or degree < 1 or degree > 64:
        return None
    if value < 0:
        inner = _exact_root(-value, degree) if degree % 2 else None
        return None if inner is None else -inner
    return rational_power(value, 1 / degree)


def _lcm(*values: Fraction) -> Fraction:
    return Fraction(math.lcm(*(_whole(abs(v), 1 << 4000) for v in values)))


EXACT: dict[str, Callable[..., Fraction | None]] = {
    "abs": abs, "floor": lambda v: Fraction(math.floor(v)), "ceil": lambda v: Fraction(math.ceil(v)), "max": max, "min": min,
    "factorial": lambda v: Fraction(math.factorial(_whole(v, 5000))), "binomial": _binomial, "root": _exact_root,
    "gcd": lambda *v: Fraction(math.gcd(*(_whole(abs(x), 1 << 4000) for x in v))), "lcm": _lcm,
    "cbrt": lambda v: _exact_root(v, Fraction(3)), "log": lambda v, b=Fraction(10): _exact_log(v, b), "lg": _exact_log,
}  # fmt: skip
