"""The values of literals, and small trees built from other trees."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from rewarders.answers.lexer import Unreadable

Node = tuple[Any, ...]
MAX_DIGITS = 1000
ONE, MINUS = ("num", Fraction(1), False), ("num", Fraction(-1), False)


def determinant(rows: tuple[tuple[Node, ...], ...]) -> Node:
    """The determinant of a square matrix of at most four rows, by Laplace expansion. Raises Unreadable."""
    if len(rows) != len(rows[0]) or len(rows) > 4:
        raise Unreadable("no small square matrix")
    if len(rows) == 1:
        return rows[0][0]
    minors = [determinant(tuple(row[:j] + row[j + 1 :] for row in rows[1:])) for j in range(len(rows))]
    return ("add", tuple(("mul", (MINUS if j % 2 else ONE, rows[0][j], minor)) for j, minor in enumerate(minors)))


def negated(node: Node) -> Node:
    return ("num", -node[1], node[2]) if node[0] == "num" else ("mul", (MINUS, node))


def number(text: str) -> Fraction:
    """The exact value of a decimal literal. Raises Unreadable if it is too long or its exponent is too large."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(exponent) > 5 or (exponent and abs(int(exponent)) > 2000):
        raise Unreadable("too many digits")
    return Fraction(text)


def repeating(text: str) -> Fraction:
    r"""``0.\overline{6}``, ``0.1(6)``, ``0.333...`` as a fraction. Raises Unreadable above 100 characters."""
    for mark in ("\\overline", "\\bar", "\\dot", "("):
        if mark in text:
            fixed, _, cycle = text.partition(mark)
            cycle = cycle.strip(" {}()")
            break
    else:
        fixed = text.rstrip(".…\\ldotsc ")
        cycle = fixed[-1]
        fixed = fixed[:-3]
    fixed = fixed if "." in fixed else fixed + "."
    places = len(fixed) - fixed.index(".") - 1
    if len(text) > 100:
        raise Unreadable("too many digits")
    start = Fraction("0" + fixed + "0" if fixed.startswith(".") else fixed + "0")
    return start + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10**places)


def based(node: Node, base: str) -> Node:
    """Digits with a written base, never equal to a number without one. Raises Unreadable for other nodes."""
    inner = node[3][0] if node[0] == "group" else node
    if inner[0] != "num" or inner[2]:
        raise Unreadable("a subscript of no digits")
    words = {
        "two": "2",
        "eight": "8",
        "ten": "10",
        "sixteen": "16",
        "three": "3",
        "four": "4",
        "five": "5",
        "six": "6",
        "seven": "7",
        "nine": "9",
    }
    return ("based", str(inner[1]), words.get(base, base))


def built(left: Node, condition: Node) -> Node:
    r"""``\{x \mid x > 2\}`` and ``\{x \in R \mid x > 2\}`` as the condition on x. Raises Unreadable."""
    variable = left[2][0] if left[0] == "rel" and left[1] == ("in",) else left
    if variable[0] != "sym":
        raise Unreadable("a set that is built over no variable")
    return ("build", variable[1], condition)
