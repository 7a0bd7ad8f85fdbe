"""Reads plain numbers, which most answers are, without the parser."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 1000
NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|[+-]?\.\d+")
FRACTION = re.compile(
    r"([+-]?)\s*(?:\\frac\s*\{\s*([+-]?\d+)\s*\}\s*\{\s*([+-]?\d+)\s*\}|\\frac\s*(\d)\s*(\d)|(\d+)\s*/\s*([+-]?\d+))"
)
MIXED = re.compile(
    r"([+-]?)\s*(\d+)(?:\s+(\d+)\s*/\s*(\d+)|\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|\s*\\frac\s*(\d)\s*(\d))"
)


def number(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, mixed number or percentage; None for anything else."""
    if len(text) > MAX_DIGITS:
        return None
    if text.endswith("%"):
        bare = text[:-1].rstrip("\\").rstrip()
        inner = None if bare.endswith("%") else number(bare)
        return None if inner is None else inner / 100
    if NUMBER.fullmatch(text):
        return Fraction(text.replace(",", ""))
    for form in (FRACTION, MIXED):
        found = form.fullmatch(text)
        if found:
            sign, *digits = found.groups()
            parts = [int(part) for part in digits if part is not None]
            if parts[-1] == 0:
                return None
            value = Fraction(parts[-2], parts[-1]) + (parts[0] if form is MIXED else 0)
            return -value if sign == "-" else value
    return None
