"""Evaluates trees: exactly if the value is rational, else to 50 digits. Costs are bounded before anything is computed.

Two expressions count as equal if their values agree at fixed points of their variables (identity testing: Schwartz,
J. ACM 27 (1980) 701; different analytic functions practically never agree at several unrelated points).
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from rewarders.answers.literals import Node
from rewarders.answers.rationals import EXACT, Costly, Undefined, bounded, rational_power

MAX_WORK = 12_000
"""Most nodes evaluated for one answer; each term of a sum counts, and a function's value by its length."""
MAX_TERMS = 2_000  # of one sum or product
DIGITS = 50  # decimal digits of inexact values
TINY = 1e-42  # below this a value may be nothing but rounding


class Work:
    """The remaining budget of a computation, in nodes. ``spend`` raises Costly once it is used up."""

    def __init__(self) -> None:
        self.left = MAX_WORK

    def spend(self, amount: int = 1) -> None:
        self.left -= amount
        if self.left < 0:
            raise Costly("it takes too many operations")


def exact(node: Node, values: Mapping[str, Fraction], work: Work) -> Fraction | None:
    """The rational value of ``node``; None if it is not known to be rational. Raises Costly, Undefined."""
    work.spend()
    kind = node[0]
    if kind == "num":
        return bounded(node[1])
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
        found = None if None in arguments else EXACT[node[1]](*arguments)
        if found is not None:
            work.spend(_cost(node[1], arguments, found))
        return found
    return None


def _cost(function: str, arguments: list[Any], value: Fraction) -> int:
    """What a function's value has cost, in nodes: its length, and the factors of a binomial."""
    factors = int(min(arguments[1], arguments[0] - arguments[1])) if function == "binomial" else 0
    return (value.numerator.bit_length() >> 10) + (max(0, factors) >> 6)


def _fold(
    nodes: tuple[Node, ...], values: Mapping[str, Fraction], work: Work, start: Fraction, join: Any
) -> Fraction | None:
    total = start
    for part in nodes:
        value = exact(part, values, work)
        if value is None:
            return None
        total = bounded(join(total, value))
    return total


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
        total = bounded(total + term if node[1] == "sum" else total * term)
    return total


_CONTEXTS = threading.local()


def context() -> Any:
    """This thread's mpmath context, kept because making one takes longer than most comparisons."""
    if not hasattr(_CONTEXTS, "mp"):
        import mpmath

        _CONTEXTS.mp = mpmath.mp.clone()
    _CONTEXTS.mp.dps = DIGITS
    return _CONTEXTS.mp


class Numeric:
    """Evaluates trees to complex numbers of ``DIGITS`` digits (mpmath), for given values of the variables."""

    def __init__(self, work: Work) -> None:
        self.m = context()
        self.work = work
        self.branched = False
        """Whether, since this was last reset, real arguments have given a complex value: a choice of branch."""

    def value(self, node: Node, values: Mapping[str, Fraction]) -> Any:
        """The value of ``node``. Raises Costly, Undefined."""
        try:
            return self._value(node, values)
        except (ZeroDivisionError, ValueError, OverflowError, TypeError, ArithmeticError) as error:
            raise Undefined(f"{type(error).__name__}: {error}") from error

    def settled(self, node: Node, values: Mapping[str, Fraction]) -> Any:
        """The value of ``node``; 0 if it is nothing but rounding, which shrinks when the digits are doubled. Raises
        Costly, Undefined."""
        value = self.value(node, values)
        if not 0 < abs(value) <= TINY:
            return value
        self.m.dps = 2 * DIGITS
        try:
            finer = self.value(node, values)
        finally:
            self.m.dps = DIGITS
        return value if abs(finer) > abs(value) / 10**10 else self.m.zero

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
            return self._chosen(NUMERIC[node[1]](m, *small), *small)
        raise Undefined(f"a {kind} is no number")

    def _power(self, node: Node, values: Mapping[str, Fraction]) -> Any:
        base, power = self._value(node[1], values), self._value(node[2], values)
        if (abs(power) > 1 << 20 and abs(base) not in (0, 1)) or (
            abs(base) > 1 and abs(power) * self.m.log(abs(base)) > 1 << 22
        ):
            raise Costly("a power is too large")
        if base == 0 and self.m.re(power) <= 0:
            raise Undefined("zero to the power of zero or less")
        return self._chosen(base**power, base, power)

    def _chosen(self, value: Any, *arguments: Any) -> Any:
        if self.m.im(value) and not any(self.m.im(a) for a in arguments):
            self.branched = True
        return value


LARGEST = {
    "exp": 1e6,
    "sinh": 1e6,
    "cosh": 1e6,
    "tanh": 1e6,
    "factorial": 1e5,
    "binomial": 1e6,
    **dict.fromkeys(["sin", "cos", "tan", "cot", "sec", "csc"], 1e30),
}


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
    """The free variables of a tree."""
    if not isinstance(node, tuple) or not node:
        return set()
    if node[0] == "sym" and len(node) == 2 and isinstance(node[1], str):
        return {node[1]}
    found = set().union(*(variables(part) for part in node if isinstance(part, tuple)))
    return found - {node[2]} if node[0] == "bigop" else found


def point(name: str, number: int) -> Fraction:
    """The value of variable ``name`` at point ``number`` (from 0): its size is between 0.3 and 2.8. From point 3 on
    it may be negative."""
    raw = zlib.crc32(f"{name}/{number}".encode())
    value = Fraction(3, 10) + Fraction(raw % 1_000_003, 400_001)
    return -value if number >= 3 and raw & (1 << 30) else value
