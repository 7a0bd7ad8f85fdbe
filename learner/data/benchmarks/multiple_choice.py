"""GPQA and MMLU: questions with options, of which one is right. The options travel with the row, so that the judge knows them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, ClassVar

from broker.errors import DataError
from learner.data.benchmarks.base import CHOICE_JUDGE, Asked, Benchmark, Cells

LETTERED = "{question}\n\nPut the letter of the right option in \\boxed{}."


@dataclass(frozen=True, kw_only=True)
class _Lettered(Benchmark):
    judged_by: ClassVar[tuple[str, ...]] = (CHOICE_JUDGE,)
    template: str = LETTERED


@dataclass(frozen=True, kw_only=True)
class Gpqa(_Lettered):
    """GPQA (diamond and the others): ``Question``, ``Correct Answer``, ``Incorrect Answer 1`` to ``3``, ``Record ID``, ``High-level domain``.

    The table has the right option in a column of its own, so the options are put in an order that ``seed`` and the row decide: the same in
    every run. One option may not be there twice.
    """

    seed: int = 0

    def asked(self, cells: Cells, number: int) -> Asked:
        right = cells.text("Correct Answer").strip()
        options = [right, *(cells.text(f"Incorrect Answer {n}").strip() for n in (1, 2, 3))]
        if len(set(options)) < len(options):
            raise DataError(f"{cells.place} has an option twice: {', '.join(options)[:160]!r}")
        identity = str(cells.find("Record ID") or number)
        random.Random(f"gpqa/{self.seed}/{identity}").shuffle(options)
        kind = str(cells.find("High-level domain") or "gpqa")
        letter = ascii_uppercase[options.index(right)]
        about = {"options": list(options), "record": identity}
        return Asked(listed(cells.text("Question"), options), letter, kind, about)


@dataclass(frozen=True, kw_only=True)
class Mmlu(_Lettered):
    """MMLU: ``question``, ``choices`` (a list), ``answer`` (the place from 0, or the letter), ``subject``; or the options in columns ``A`` to ``D``."""

    def asked(self, cells: Cells, number: int) -> Asked:
        options = self._options(cells)
        letter = _letter(cells, options)
        about = {"options": list(options)}
        return Asked(listed(cells.text("question"), options), letter, str(cells.find("subject") or "mmlu"), about)

    def _options(self, cells: Cells) -> list[str]:
        found: Any = cells.find("choices", "options")
        if found is None:
            return [cells.text(letter) for letter in "ABCD"]
        if isinstance(found, str) or not isinstance(found, Sequence) or not 2 <= len(found) <= len(ascii_uppercase):
            raise DataError(
                f"{cells.place} column 'choices' is {str(found)[:80]!r}; it must be a list of 2 to 26 options"
            )
        return [str(option) for option in found]


def _letter(cells: Cells, options: Sequence[str]) -> str:
    """The letter of the right option, which is given as a place or as a letter."""
    told = cells.text("answer").strip()
    letters = ascii_uppercase[: len(options)]
    known = {str(place): letter for place, letter in enumerate(letters)} | {letter: letter for letter in letters}
    if told.upper() not in known:
        raise DataError(
            f"{cells.place} column 'answer' is {told[:40]!r}; it must name one of {len(options)} options, as 0 to {len(options) - 1} or by letter"
        )
    return known[told.upper()]


def listed(question: str, options: Sequence[str]) -> str:
    """A question with its options, a line each."""
    lines = [f"{letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([question.strip(), "", *lines])
