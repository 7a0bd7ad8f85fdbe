"""Compares outputs with what is expected. Runs outside the sandbox, on plain values.

Nothing here executes, imports or trusts what a program puts out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from broker.errors import MessageError
from broker.spelling import nearest


def _exact(text: str) -> list[list[str]]:
    return [[text]]


def _lines(text: str) -> list[list[str]]:
    """The lines without blanks at their ends, and without empty lines at the end of the text."""
    return [[line.rstrip()] for line in text.rstrip().split("\n")]


def _tokens(text: str) -> list[list[str]]:
    return [text.split()]


SPLITS: dict[str, Callable[[str], list[list[str]]]] = {"exact": _exact, "lines": _lines, "tokens": _tokens}
CHECKERS = (*SPLITS, "unordered")


def same_text(found: str, expected: str, checker: str, tolerance: float) -> bool:
    """Whether two texts are equal by one of CHECKERS: ``exact``: in every character; ``lines``: except for blanks at
    the ends of lines and of the text; ``tokens``: except for blanks anywhere; ``unordered``: as
    ``lines``, in any order.

    With a ``tolerance``, words that are numbers may differ by that much, absolutely or relative to the expected number;
    blanks within a line do not matter then. ``unordered`` ignores it.
    """
    if checker == "unordered":
        return sorted(_lines(found)) == sorted(_lines(expected))
    rows, wanted = SPLITS[checker](found), SPLITS[checker](expected)
    if rows == wanted:
        return True
    if tolerance <= 0 or len(rows) != len(wanted):
        return False
    return all(_close_row(a, b, tolerance) for a, b in zip(rows, wanted, strict=True))


def _close_row(row: list[str], wanted: list[str], tolerance: float) -> bool:
    left, right = [w for cell in row for w in cell.split()], [w for cell in wanted for w in cell.split()]
    return len(left) == len(right) and all(_close_word(a, b, tolerance) for a, b in zip(left, right, strict=True))


def _close_word(a: str, b: str, tolerance: float) -> bool:
    if a == b:
        return True
    try:
        return _close(float(a), float(b), tolerance)
    except ValueError:
        return False


def _close(a: float, b: float, tolerance: float) -> bool:
    if not (math.isfinite(a) and math.isfinite(b)):
        return False
    return abs(a - b) <= tolerance * max(1.0, abs(b))


def same_value(found: Any, expected: Any, checker: str, tolerance: float) -> bool:
    """Whether two JSON values are equal, and of exactly the same types throughout.

    With a ``tolerance``, numbers (never booleans) may differ by that much, absolutely or relative to the expected one.
    ``unordered``: the outermost list may be in any order; ``tolerance`` does not apply to it.
    """
    if checker == "unordered" and type(found) is list and type(expected) is list:
        return sorted(map(_key, found)) == sorted(map(_key, expected))
    if tolerance > 0 and {type(found), type(expected)} <= {int, float}:
        try:
            return bool(found == expected) or _close(float(found), float(expected), tolerance)
        except OverflowError:
            return False
    if type(found) is not type(expected):
        return False
    if isinstance(expected, list):
        return len(found) == len(expected) and all(
            same_value(a, b, "exact", tolerance) for a, b in zip(found, expected, strict=True)
        )
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same_value(found[k], expected[k], "exact", tolerance) for k in expected)  # fmt: skip
    return bool(found == expected)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def known_checker(name: str) -> str:
    """``name`` itself. Raises MessageError if there is no such checker."""
    if name not in CHECKERS:
        raise MessageError(f"checker is {name!r}; it must be one of {CHECKERS}{nearest(name, CHECKERS)}")
    return name
