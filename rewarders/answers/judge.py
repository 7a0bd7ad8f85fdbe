"""Judges an answer against a reference by text, numbers, words and values; the symbolic comparison decides the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rewarders.answers import units, words
from rewarders.answers.compare import Comparison, Rules, without
from rewarders.answers.lexer import Unreadable
from rewarders.answers.rationals import Costly
from rewarders.answers.readings import TIME, Answer, Reading
from rewarders.answers.scalars import RELATIVE, terminates
from rewarders.answers.shapes import Scalar

FORBIDDEN = re.compile(
    r"!|\^\s*\{?[^{}^]*\^|\^\s*\{?\s*[+-]?\d{4,}|\d{400,}|\d[eE][+-]?\d{4,}|\\int|\\sum|\\prod|\\lim|factorial|__|\bimport\b|lambda|\\approx|\\input|\\write"
)
"""Answers that never go to the symbolic comparison, because its parser can hang on them. If ``parse`` cannot read
them either, they are wrong."""
MAX_SYMBOLIC = 300  # characters of an answer that may go to the symbolic comparison


@dataclass(frozen=True)
class Finding:
    """``right`` is None if only the symbolic comparison can tell."""

    right: bool | None
    why: str = ""


def judge(answer: Answer, reference: Answer, rules: Rules, unit_policy: str) -> Finding:
    """Whether the answer is right, as far as that can be known without the symbolic comparison."""
    if answer.text == reference.text:
        return Finding(True)
    if not answer.text:
        return Finding(False, "an empty answer")
    if answer.value is not None and reference.value is not None and "%" not in answer.text + reference.text:
        return Finding(same_numbers(answer, reference, rules.tolerance))
    for decide in (_choices, _words):
        found = decide(answer, reference)
        if found is not None:
            return Finding(found)
    try:
        if any(_same(a, r, rules, unit_policy) for r in reference.readings for a in answer.readings):
            return Finding(True)
    except Costly as error:
        return Finding(False, f"refused: {error}")
    if words.close_up(answer.text) == words.close_up(reference.text):
        return Finding(True)
    if answer.readings and reference.readings:
        return Finding(False, answer.fault)
    if words.loose(answer.text) == words.loose(reference.text):
        return Finding(True)
    if not _worth_asking(answer, reference):
        return Finding(False, answer.fault)
    return Finding(None)


def same_numbers(answer: Answer, reference: Answer, tolerance: float) -> bool:
    a, r = answer.value, reference.value
    assert a is not None and r is not None
    if a == r:
        return True
    decimals = "." in answer.text or "." in reference.text
    if not decimals or (tolerance <= RELATIVE and terminates(a) and terminates(r)):
        return False
    return abs(a - r) <= Fraction(tolerance) * max(abs(a), abs(r))


def _choices(answer: Answer, reference: Answer) -> bool | None:
    if reference.choice is None:
        return None
    if answer.choice is not None:
        return answer.choice == reference.choice
    return False if reference.choice in words.LETTERS and not answer.readings else None


def _words(answer: Answer, reference: Answer) -> bool | None:
    if not answer.words and not reference.words:
        return None
    if words.folded(answer.text) == words.folded(reference.text):
        return True
    if TIME.fullmatch(words.without_wrappers(answer.text)) and not reference.words:
        return None
    return False


def _same(answer: Reading, reference: Reading, rules: Rules, unit_policy: str) -> bool:
    """Whether two readings agree: their units measure the same thing, and their values are equal after conversion."""
    if unit_policy == "required" and reference.unit and not answer.unit:
        return False
    factor = units.conversion(_unit(answer), _unit(reference))
    if factor is None:
        return False
    shape = answer.shape
    if factor != 1:
        if not isinstance(shape, Scalar):
            return False
        shape = Scalar(("mul", (shape.node, ("num", factor, False))))
    try:
        return Comparison(rules).same(shape, reference.shape)
    except (Unreadable, RecursionError):
        return False


def _unit(reading: Reading) -> str:
    """The unit after a value; a degree sign counts as one."""
    in_degrees = isinstance(reading.shape, Scalar) and without(reading.shape.node, "deg") is not reading.shape.node
    return reading.unit or ("degree" if in_degrees else "")


def _worth_asking(answer: Answer, reference: Answer) -> bool:
    """Whether to ask math-verify: only about references not understood here, as it reads too much into odd answers."""
    hostile = len(answer.text) > MAX_SYMBOLIC or FORBIDDEN.search(answer.text) or words.TEXT.search(answer.text)
    return not (
        reference.readings
        or reference.words
        or hostile
        or words.is_phrase(answer.text)
        or words.is_phrase(reference.text)
    )
