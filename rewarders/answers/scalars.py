"""Whether two expressions have the same value."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from rewarders.answers.evaluate import Numeric, Work, exact, point, variables
from rewarders.answers.literals import Node
from rewarders.answers.rationals import Costly, Undefined

POINTS = 6  # at which expressions with variables are compared
EXACTNESS = 1e-40  # relative difference that counts as none
RELATIVE = 1e-8
"""Default tolerance, relative, between a decimal and a value that decimals cannot express exactly."""


def has_decimals(node: Any) -> bool:
    """Whether the tree contains a decimal number."""
    if not isinstance(node, tuple) or not node:
        return False
    if node[0] == "num":
        return bool(node[2])
    return any(has_decimals(part) for part in node)


def terminates(value: Fraction) -> bool:
    """Whether ``value`` has at most 12 decimal places. By default two such values must be exactly equal."""
    return (10**12) % value.denominator == 0


def same_value(left: Node, right: Node, work: Work, tolerance: float = RELATIVE) -> bool:
    """Whether two trees have the same value; a tree without a value equals only itself, as spelled.

    ``tolerance`` is relative, and applies if either tree has a decimal. Raises Costly if deciding would cost too much.
    """
    if left == right:
        return True
    decimals = has_decimals(left) or has_decimals(right)
    names = sorted(variables(left) | variables(right))
    try:
        if not names:
            a, b = exact(left, {}, work), exact(right, {}, work)
            if a is not None and b is not None:
                if a == b or not decimals or (tolerance <= RELATIVE and terminates(a) and terminates(b)):
                    return a == b
                return abs(a - b) <= Fraction(tolerance) * max(abs(a), abs(b))
        return _same_at_points(left, right, names, Numeric(work), tolerance if decimals else EXACTNESS)
    except Undefined:
        return False


def _same_at_points(left: Node, right: Node, names: list[str], numeric: Numeric, tolerance: float) -> bool:
    compared = 0
    for number in range(POINTS if names else 1):
        at = {name: point(name, number) for name in names}
        numeric.branched = False
        try:
            a, b = numeric.settled(left, at), numeric.settled(right, at)
        except Undefined:
            continue
        m = numeric.m
        if m.isnan(a) or m.isnan(b):
            continue
        if number >= 3 and numeric.branched:
            continue  # where a value is not real, it depends on the convention for branches
        if not close(m, a, b, tolerance):
            return False
        compared += 1
    return compared > 0


def close(m: Any, a: Any, b: Any, tolerance: float) -> bool:
    """Whether two numbers differ by at most ``tolerance`` of the larger; an infinity equals only itself."""
    if m.isinf(a) or m.isinf(b):
        return bool(a == b)
    return bool(abs(a - b) <= tolerance * max(abs(a), abs(b)))


def ratio_is_constant(left: Node, right: Node, work: Work) -> Any:
    """The constant c for which ``left = c * right`` at three points; None if there is none. Raises Costly."""
    names = sorted(variables(left) | variables(right))
    numeric = Numeric(work)
    found = None
    for number in range(3):
        at = {name: point(name, number) for name in names}
        try:
            a, b = numeric.settled(left, at), numeric.settled(right, at)
        except Undefined:
            return None
        infinite = any(numeric.m.isinf(v) or numeric.m.isnan(v) for v in (a, b))
        if infinite or a == 0 or b == 0:
            return None
        ratio = a / b
        if found is not None and not close(numeric.m, ratio, found, EXACTNESS):
            return None
        found = ratio
    return found


__all__ = ["Costly", "Undefined", "has_decimals", "ratio_is_constant", "same_value"]
