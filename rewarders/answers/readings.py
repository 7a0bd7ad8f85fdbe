"""The ways in which an answer can sensibly be read: as it stands, and as a value followed by a unit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from broker.errors import HeadraceError
from rewarders.answers import canonical, units, words
from rewarders.answers.compare import Comparison, Rules
from rewarders.answers.lexer import Unreadable
from rewarders.answers.numbers import number
from rewarders.answers.parse import parse
from rewarders.answers.rationals import Costly, Undefined
from rewarders.answers.shapes import shape
from rewarders.answers.surface import MATHS, normal
from rewarders.text import HASHES, boxes

MAX_REFERENCE = 8192
LABEL = re.compile(
    r"^(?:\\(?:text|mathrm|textbf|mbox)\s*\{[^{}]*[A-Za-z]{3}[^{}]*\}\s*[=:]|\\text\s*\{[^{}]*(?:\bis|:)\s*\}"
    r"|(?!lambda|return|print)(?=[A-Za-z ]*[a-z]{2})[A-Za-z]{3,}(?: [A-Za-z]+){0,4}\s*[=:])\s*(?=\S)"
)
"""Words before a value: ``Area = 12``, ``\\text{The answer is } 4``."""
TIME = re.compile(r"\d{1,2}:[0-5]\d(?::[0-5]\d)?(?:\s?[ap]\.?\s?m\.?)?", re.IGNORECASE)


class UnreadableReference(HeadraceError):
    """The reference of a prompt is not an answer that anything can be compared with."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A shape and the unit that followed it, empty if there was none."""

    shape: Any
    unit: str = ""


@dataclass(frozen=True)
class Answer:
    """``text`` is normalised; ``value`` is set if it is a plain number; ``readings`` is empty if it cannot be parsed.

    ``choice`` is the letter of an option; ``words``: it is compared as words; ``fault`` says why it cannot be parsed.
    """

    text: str
    value: Fraction | None = None
    readings: tuple[Reading, ...] = ()
    choice: str | None = None
    words: bool = False
    fault: str = ""

    @property
    def readable(self) -> bool:
        return bool(self.value is not None or self.readings or self.choice or self.words)


def read(text: str, with_units: bool = True) -> Answer:
    """Read an answer; ``with_units``: also as a value with a unit. Never raises: ``fault`` says what is wrong."""
    plain = normal(text)
    spelled = words.without_wrappers(plain)
    in_words = words.number_in_words(spelled)
    plain = in_words or plain
    plain = LABEL.sub("", plain) or plain
    plain = units.scaled(_approximated(plain))
    value = number(plain)
    if value is not None:
        return Answer(plain, value, _readings(plain, False)[0])
    if words.is_words(spelled) or words.folded(plain) == "∅" or TIME.fullmatch(spelled):
        return Answer(plain, words=True)
    readings, fault = _readings(plain, with_units)
    return Answer(plain, None, readings, words.choice(spelled), False, fault)


def _approximated(text: str) -> str:
    r"""``3\sqrt{2} \approx 4.24`` without what follows ``\approx``, if that is a rounding (within 2%)."""
    exact, sign, rounded = text.partition("\\approx")
    if not sign or not exact.strip() or "\\approx" in rounded:
        return text
    try:
        near = Comparison(Rules(tolerance=0.02)).same(shape(parse(rounded.strip())), shape(parse(exact.strip())))
    except (Unreadable, Costly, RecursionError):
        return text
    return exact.strip() if near else text


def _readings(text: str, with_units: bool) -> tuple[tuple[Reading, ...], str]:
    found, fault = [], ""
    for part, unit in [(text, ""), *([cut] if with_units and (cut := units.split(text)) else [])]:
        inner = units.split(part) if unit else None
        unit = f"{inner[1]} {unit}" if inner and inner[1] != "degree" else unit
        part = inner[0] if inner else part
        try:
            found.append(Reading(shape(parse(part)), unit))
        except (Unreadable, RecursionError) as error:
            fault = fault or str(error)
    return tuple(found), fault


def canonical_text(answer: Answer) -> str:
    """The text that equal answers share, so that they can be counted (cons@k)."""
    if answer.value is not None:
        return str(answer.value) if answer.value.numerator.bit_length() < 8000 else answer.text[:400]
    if answer.words:
        return words.folded(answer.text)
    for reading in sorted(answer.readings, key=lambda r: not r.unit):
        if answer.choice and len(answer.choice) == 1 and answer.choice in words.LETTERS:
            return answer.choice
        try:
            return canonical.text_of(reading.shape)
        except (Costly, Undefined, Unreadable, KeyError, RecursionError):
            continue
    return words.loose(answer.text)[:400]


@lru_cache(maxsize=4096)
def read_reference(text: str, with_units: bool = True) -> Answer:
    r"""Read a reference: a value, or a text with it in ``\boxed{...}``, after ``####``, or in its only ``$...$``."""
    if HASHES in text:
        text = text.rpartition(HASHES)[2]
    if "\\boxed" in text or "\\fbox" in text:
        held = boxes(text[text.rfind("\\boxed") :])
        text = held[0] if held else text
    answer = read(text, with_units)
    if not answer.readable:
        formulas = MATHS.findall(text)
        if len(formulas) == 1:
            inner = read(next(part for part in formulas[0] if part), with_units)
            return inner if inner.readable else answer
    return answer
