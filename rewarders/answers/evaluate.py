"""The value of a tree: exact where it is rational, to 40 digits where it is not, with its cost bounded before anything is computed.

Equality of two expressions is decided by their values at fixed points of their variables (identity testing: Schwartz, J. ACM 27 (1980)
701; for analytic functions a coincidence at several unrelated points has no chance in practice).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from broker.errors import HeadraceError
from rewarders.answers.parse import Node

MAX_BITS = 60_000
"""Of an exact number: 18,000 digits."""
MAX_WORK = 12_000
"""Nodes evaluated for one answer, sums unrolled."""
MAX_TERMS = 2_000
DIGITS = 40


class Costly(HeadraceError):
    """The value is too large to compute."""


class Undefined(HeadraceError):
    """The tree has no value of this kind: a division by zero, a set, a variable without a value."""


class Work:
    """What is left to spend."""

    def __init__(self) -> None:
        self.left = MAX_WORK

    def spend(self, amount: int = 1) -> None:
        self.left -= amount
        if self.left < 0:
            raise Costly("it takes too many operations")


def exact(node: Node, values: Mapping[str, Fraction], work: Work) -> Fraction | None:
    """The rational value of ``node``; None where it is irrational or not known to be rational. Raises Costly, Undefined."""
    work.spend()
    kind = node[0]
    if kind == "num":
        return _bounded(node[1])
    if kind == "sym":
        return values.get(node[1])
    if kind == "add":
        return _fold(node[1], values, work, Fraction(0), lambda a, b: a + b)
    if kind == "mul":
        return _fold(node[1], values, work, Fraction(1), lambda a, b: a * b)
    if kind == "pct":
        inner = exact(node[1], values, work)
        return None if inner is None else inner / 100
    if kind == "pow":
        base, power = exact(node[1], values, work), exact(node[2], values, work)
        return None if base is None or power is None else rational_power(base, power)
    if kind == "bigop":
        return _bigop_exact(node, values, work)
    if kind == "call" and node[1] in EXACT:
        arguments = [exact(a, values, work) for a in node[2]]
        return None if None in arguments else EXACT[node[1]](*arguments)
    return None


def _fold(nodes: tuple[Node, ...], values: Mapping[str, Fraction], work: Work, start: Fraction, join: Any) -> Fraction | None:
    total = start
    for part in nodes:
        value = exact(part, values, work)
        if value is None:
            return None
        total = _bounded(join(total, value))
    return total


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise Costly("a number is too long")
    return value


def rational_power(base: Fraction, power: Fraction) -> Fraction | None:
    """``base ** power`` where that is rational; None otherwise."""
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
    """The whole ``degree``-th root of ``value``, if it has one."""
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
    if max(value.numerator, value.denominator).bit_length() > 4000:
        return None
    for power in range(0, 4001):
        raised = rational_power(base, Fraction(power))
        if raised == value or raised == 1 / value:
            return Fraction(power if raised == value else -power)
        if raised is None or (raised > max(value, 1 / value) and base > 1) or (raised < min(value, 1 / value) and base < 1):
            return None
    return None


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


def _terms(node: Node, values: Mapping[str, Fraction], work: Work) -> Iterator[Fraction]:
    low, high = exact(node[3], values, work), exact(node[4], values, work)
    if low is None or high is None or low.denominator != 1 or high.denominator != 1:
        raise Undefined("a sum without whole bounds")
    if high - low > MAX_TERMS:
        raise Costly("a sum has too many terms")
    for value in range(int(low), int(high) + 1):
        yield Fraction(value)


def _bigop_exact(node: Node, values: Mapping[str, Fraction], work: Work) -> Fraction | None:
    total = Fraction(0 if node[1] == "sum" else 1)
    for value in _terms(node, values, work):
        term = exact(node[5], {**values, node[2]: value}, work)
        if term is None:
            return None
        total = _bounded(total + term if node[1] == "sum" else total * term)
    return total


class Numeric:
    """Complex values to ``DIGITS`` digits (mpmath), variables at given points."""

    def __init__(self, work: Work) -> None:
        import mpmath

        self.m = mpmath.mp.clone()
        self.m.dps = DIGITS
        self.work = work

    def value(self, node: Node, values: Mapping[str, Fraction]) -> Any:
        """Raises Costly, Undefined."""
        try:
            return self._value(node, values)
        except (ZeroDivisionError, ValueError, OverflowError, TypeError, ArithmeticError) as error:
            raise Undefined(f"{type(error).__name__}: {error}") from error

    def _value(self, node: Node, values: Mapping[str, Fraction]) -> Any:
        self.work.spend()
        kind, m = node[0], self.m
        if kind == "num":
            return m.mpf(node[1].numerator) / node[1].denominator
        if kind == "sym":
            if node[1] not in values:
                raise Undefined(f"{node[1]} has no value")
            return m.mpf(values[node[1]].numerator) / values[node[1]].denominator
        if kind == "const":
            return {"pi": +m.pi, "e": +m.e, "i": m.mpc(0, 1), "infty": m.inf}[node[1]]
        if kind == "add":
            return m.fsum(self._value(part, values) for part in node[1])
        if kind == "mul":
            return m.fprod(self._value(part, values) for part in node[1])
        if kind == "pow":
            return self._power(node, values)
        if kind in ("deg", "pct"):
            return self._value(node[1], values) * (m.pi / 180 if kind == "deg" else m.mpf(1) / 100)
        if kind == "bigop":
            terms = (self._value(node[5], {**values, node[2]: v}) for v in _terms(node, values, self.work))
            return m.fsum(terms) if node[1] == "sum" else m.fprod(terms)
        if kind == "call" and node[1] in NUMERIC:
            small = [self._value(part, values) for part in node[2]]
            if any(abs(v) > LARGEST.get(node[1], m.inf) for v in small):
                raise Costly("an argument is too large")
            return NUMERIC[node[1]](m, *small)
        raise Undefined(f"a {kind} is no number")

    def _power(self, node: Node, values: Mapping[str, Fraction]) -> Any:
        base, power = self._value(node[1], values), self._value(node[2], values)
        if abs(power) > 1 << 20 and abs(base) not in (0, 1) or abs(base) > 1 and abs(power) * self.m.log(abs(base)) > 1 << 22:
            raise Costly("a power is too large")
        if base == 0 and self.m.re(power) <= 0:
            raise Undefined("zero to the power of zero or less")
        return base**power


LARGEST = {"exp": 1e6, "sinh": 1e6, "cosh": 1e6, "tanh": 1e6, "factorial": 1e5, "binomial": 1e6, **dict.fromkeys("sin cos tan cot sec csc".split(), 1e30)}


def _odd_root(m: Any, value: Any, degree: Any = 2) -> Any:
    if m.im(value) == 0 and m.re(value) < 0 and degree == int(degree.real) and int(degree.real) % 2:
        return -((-m.re(value)) ** (1 / degree))
    if value == 0:
        return value
    return value ** (1 / m.mpf(1) / degree)


def _log(m: Any, value: Any, base: Any = None) -> Any:
    return m.log(value) / m.log(10 if base is None else base)


def _real(m: Any, value: Any) -> Any:
    if m.im(value) != 0:
        raise Undefined("a real number is needed")
    return m.re(value)


NUMERIC: dict[str, Callable[..., Any]] = {
    **{name: (lambda m, v, _name=name: getattr(m, _name)(v)) for name in (
        "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp", "factorial")},
    "arcsin": lambda m, v: m.asin(v), "arccos": lambda m, v: m.acos(v), "arctan": lambda m, v: m.atan(v), "arccot": lambda m, v: m.pi / 2 - m.atan(v),
    "arcsinh": lambda m, v: m.asinh(v), "arccosh": lambda m, v: m.acosh(v), "arctanh": lambda m, v: m.atanh(v),
    "ln": lambda m, v: m.log(v), "log": _log, "lg": _log, "abs": lambda m, v: abs(v), "root": _odd_root, "cbrt": lambda m, v: _odd_root(m, v, m.mpf(3)),
    "floor": lambda m, v: m.floor(_real(m, v)), "ceil": lambda m, v: m.ceil(_real(m, v)), "binomial": lambda m, n, k: m.binomial(n, k),
    "max": lambda m, *v: max(_real(m, x) for x in v), "min": lambda m, *v: min(_real(m, x) for x in v), "Re": lambda m, v: m.re(v), "Im": lambda m, v: m.im(v),
}  # fmt: skip


def variables(node: Any) -> set[str]:
    """The variables that stand free in a tree."""
    if not isinstance(node, tuple) or not node:
        return set()
    if node[0] == "sym" and len(node) == 2 and isinstance(node[1], str):
        return {node[1]}
    found = set().union(*(variables(part) for part in node if isinstance(part, tuple)))
    return found - {node[2]} if node[0] == "bigop" else found


def point(name: str, number: int) -> Fraction:
    """Where variable ``name`` stands at point ``number``: between 0.3 and 2.8, from the third point on also negative."""
    raw = zlib.crc32(f"{name}/{number}".encode())
    value = Fraction(3, 10) + Fraction(raw % 1_000_003, 400_001)
    return -value if number >= 3 and raw & (1 << 30) else value
