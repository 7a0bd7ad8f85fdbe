"""The canonical text of an answer: equal answers have equal texts, so that a majority can be found (cons@k)."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rewarders.answers.evaluate import TINY, Numeric, Work, exact, point, variables
from rewarders.answers.literals import Node
from rewarders.answers.rationals import Costly, Undefined
from rewarders.answers.regions import Line
from rewarders.answers.scalars import EXACTNESS
from rewarders.answers.shapes import Bag, Based, Chain, Equation, Matrix, Named, Ratio, Region, Row, Scalar, holds

MAX_TERMS = 48  # of a polynomial
SHOWN = 14  # significant digits of an inexact number
MAX_TEXT = 400  # characters
Polynomial = dict[tuple[tuple[str, int], ...], Fraction]  # monomial, as (variable, power) pairs -> coefficient


def text_of(shape: Any) -> str:
    """The canonical text of a shape, cut at MAX_TEXT characters. Raises Costly, Undefined, Unreadable."""
    return _TEXTS[type(shape)](shape)[:MAX_TEXT]


def expression(node: Node) -> str:
    """The canonical text of an expression: a number, a polynomial, or else its values at fixed points."""
    work = Work()
    names = sorted(variables(node))
    if not names:
        try:
            value = exact(node, {}, work)
        except Undefined:
            return "undefined"
        return rational(value) if value is not None else approximate(node)
    terms = polynomial(node, work)
    return poly_text(terms) if terms is not None else fingerprint(node, names)


def rational(value: Fraction) -> str:
    if value.numerator.bit_length() + value.denominator.bit_length() > 8000:
        raise Costly("a number is too long to be written")
    return str(value)


def approximate(node: Node) -> str:
    numeric = Numeric(Work())
    return digits(numeric, numeric.settled(node, {}))


def digits(numeric: Numeric, value: Any) -> str:
    m = numeric.m
    if m.isnan(value):
        return "undefined"
    real, imaginary = m.re(value), m.im(value)
    small = TINY * abs(value) if not m.isinf(value) else 0
    shown = [decimal(numeric, part) for part in (real, imaginary)]
    if abs(imaginary) <= small:
        return shown[0]
    return shown[1] + "i" if abs(real) <= small else f"{shown[0]} + {shown[1]}i"


def decimal(numeric: Numeric, value: Any) -> str:
    """A real number as text: a fraction if one with a denominator up to 10,000 is exact, else SHOWN digits."""
    m = numeric.m
    if m.isinf(value):
        return "oo" if value > 0 else "-oo"
    if abs(value) < 1e9:
        near = Fraction(float(value)).limit_denominator(10_000)
        if abs(m.mpf(near.numerator) / near.denominator - value) <= EXACTNESS * abs(value):
            return str(near)
    return str(m.nstr(value, SHOWN, min_fixed=-4, max_fixed=20, strip_zeros=True)).removesuffix(".0")


def fingerprint(node: Node, names: list[str]) -> str:
    """``f(x) ~ value, value``: the values at two fixed points (``?`` if undefined), which equal functions share."""
    numeric, found = Numeric(Work()), []
    for number in range(2):
        try:
            found.append(digits(numeric, numeric.settled(node, {n: point(n, number) for n in names})))
        except Undefined:
            found.append("?")
    return f"f({', '.join(names)}) ~ {', '.join(found)}"


def polynomial(node: Node, work: Work) -> Polynomial | None:
    """The coefficients by monomial; None if ``node`` is not a polynomial over the rationals or has too many terms."""
    work.spend()
    kind = node[0]
    if kind == "sym":
        return {((node[1], 1),): Fraction(1)}
    if not variables(node):
        try:
            value = exact(node, {}, work)
        except Undefined:
            return None
        return None if value is None else {(): value} if value else {}
    if kind == "add":
        parts = [polynomial(part, work) for part in node[1]]
        total: Polynomial = {}
        for part in parts:
            if part is None:
                return None
            for monomial, factor in part.items():
                total[monomial] = total.get(monomial, Fraction(0)) + factor
        return {m: f for m, f in total.items() if f} if len(total) <= MAX_TERMS else None
    if kind == "mul":
        return _product([polynomial(part, work) for part in node[1]])
    if kind == "pow" and not variables(node[2]):
        power = exact(node[2], {}, work)
        if power is None or power.denominator != 1 or not 0 <= power <= 12:
            return None
        return _product([polynomial(node[1], work)] * int(power))
    return None


def _product(parts: list[Polynomial | None]) -> Polynomial | None:
    total: Polynomial = {(): Fraction(1)}
    for part in parts:
        if part is None or len(part) * len(total) > MAX_TERMS * MAX_TERMS:
            return None
        grown: Polynomial = {}
        for left, a in total.items():
            for right, b in part.items():
                powers = dict(left)
                for name, power in right:
                    powers[name] = powers.get(name, 0) + power
                monomial = tuple(sorted(powers.items()))
                grown[monomial] = grown.get(monomial, Fraction(0)) + a * b
        total = {m: f for m, f in grown.items() if f}
        if len(total) > MAX_TERMS:
            return None
    return total


def poly_text(terms: Polynomial) -> str:
    if not terms:
        return "0"
    order = sorted(terms, key=lambda m: (-sum(p for _, p in m), m))
    return " + ".join(
        "*".join(([rational(terms[m])] if terms[m] != 1 or not m else []) + [n if p == 1 else f"{n}^{p}" for n, p in m])
        for m in order
    )


def _bag(bag: Bag) -> str:
    items = sorted((f"{i.name} = " if isinstance(i, Named) else "") + text_of(i) for i in bag.items)
    return "{" + ", ".join(sorted(set(items)) if bag.braces else items) + "}" if len(items) != 1 else items[0]


def is_interval(row: Row) -> bool:
    """Whether two numbers in brackets are the bounds of an interval rather than a point."""
    ends = [item.node for item in row.items if isinstance(item, Scalar)]
    bounded = (
        "[" in row.opening or "]" in row.closing or any(holds(end, "const") and "infty" in str(end) for end in ends)
    )
    return len(row.items) == len(ends) == 2 and bounded and not any(variables(end) for end in ends)


def _region(region: Region) -> str:
    line = Line(Work())
    return " U ".join(
        f"{'(' if i.open_low else '['}{digits(line.numeric, i.low)}, {digits(line.numeric, i.high)}{')' if i.open_high else ']'}"
        for i in line.intervals(region)
    )


def _equation(equation: Equation) -> str:
    return f"{expression(equation.left)} {equation.operator} {expression(equation.right)}"


def _ratio(ratio: Ratio) -> str:
    values = [exact(item, {}, Work()) if not variables(item) else None for item in ratio.items]
    known = [v for v in values if v is not None]
    if len(known) < len(values) or not known[-1]:
        return ":".join(expression(item) for item in ratio.items)
    return rational(known[0] / known[1]) if len(known) == 2 else ":".join(rational(v / known[-1]) for v in known)


_TEXTS: dict[type, Callable[[Any], str]] = {
    Scalar: lambda s: expression(s.node), Bag: _bag, Region: _region, Equation: _equation, Ratio: _ratio,
    Row: lambda r: _region(Region("cup", (r,))) if is_interval(r) else r.opening + ", ".join(map(text_of, r.items)) + r.closing, Named: lambda n: text_of(n.value),
    Matrix: lambda m: "[" + "; ".join(", ".join(map(expression, row)) for row in m.rows) + "]", Based: lambda b: f"{b.digits}_{b.base}",
    Chain: lambda c: expression(c.members[-1]),
}  # fmt: skip
