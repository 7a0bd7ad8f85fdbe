"""AIME and MATH-500: one question, one answer that can be compared as mathematics.

AIME is published in several tables: ``problem`` or ``question``, ``answer`` (an integer from 0 to 999, also written ``033``), and the year in
``year`` or at the beginning of ``id`` (``2024-II-4``). MATH-500 has ``problem``, ``answer``, ``subject``, ``level`` and ``unique_id``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from broker.errors import DataError
from learner.data.benchmarks.base import BOXED, Asked, Benchmark, Cells, day

_YEAR = re.compile(r"(20\d\d|19\d\d)\b")
LARGEST = 999


@dataclass(frozen=True, kw_only=True)
class Aime(Benchmark):
    """The American Invitational Mathematics Examination. A row's date is the first day of its year."""

    template: str = BOXED

    def asked(self, cells: Cells, number: int) -> Asked:
        answer = cells.text("answer", "expected_answer").strip()
        plain = answer.removesuffix(".0").strip("$ ")
        if not (plain.isascii() and plain.isdecimal() and len(plain) < 6 and int(plain) <= LARGEST):
            raise DataError(
                f"{cells.place} column 'answer' is {answer[:40]!r}; an answer of AIME is a whole number from 0 to {LARGEST}"
            )
        year = str(cells.find("year") or "")
        if not year and (found := _YEAR.match(str(cells.find("id", "problem_id") or ""))):
            year = found[1]
        date = day(year, f"{cells.place} column 'year'") if year else ""
        return Asked(cells.text("problem", "question"), str(int(plain)), "aime", date=date)


@dataclass(frozen=True, kw_only=True)
class Math500(Benchmark):
    """MATH-500. Its ``kind`` is the subject."""

    template: str = BOXED

    def asked(self, cells: Cells, number: int) -> Asked:
        about = {name: str(cells.find(name)) for name in ("level", "unique_id") if cells.find(name) is not None}
        kind = str(cells.find("subject", "type") or "math")
        return Asked(cells.text("problem", "question"), cells.text("answer"), kind, about)
