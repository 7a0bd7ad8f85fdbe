"""Selects the rows of a source that are used (``[data.NAME] select``): distinct, fresh, a limited number, repeated.

A selection is a list of row numbers of the underlying source. Its rows keep their content and are numbered anew.
"""

from __future__ import annotations

import datetime
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, model_validator

from broker.errors import DataError, RunFileError
from broker.runfile import Table
from learner.data.source import STALE_ROW, Document, PromptRow
from learner.data.wording import question_of


class CurriculumTable(Table):
    """Selects rows by how often they were answered correctly so far, read from the log when a stage begins
    (``learner.planning.curriculum``).

    The pass rate p of a row is the share of its judged samples to which ``rewarder`` gave at least 1. Rows with p below
    ``least`` or above ``most`` are left out. The others occur ``1 + round((repeat - 1) * 4 p (1 - p))`` times in an
    epoch, so ``repeat`` times for p = 1/2. Rows with fewer than ``fewest`` judged samples occur once, or not at all if
    ``unseen`` is false.
    """

    rewarder: str = "accuracy"
    least: float = Field(default=0.0, ge=0, le=1)
    most: float = Field(default=1.0, ge=0, le=1)
    repeat: int = Field(default=1, ge=1, le=64)
    fewest: int = Field(default=1, ge=1)
    unseen: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> CurriculumTable:
        if self.least > self.most:
            raise ValueError(f"least = {self.least:g} is above most = {self.most:g}: no row has such a rate")
        return self


class SelectTable(Table):
    """The table ``[data.NAME] select``.

    ``dedupe`` keeps only the first row of each question. ``fresh`` compares the date of a row (``metadata["date"]``, or
    column ``date``) with ``[run] cutoff``: ``only`` leaves out rows that are older or have no date, ``mark`` reports
    them separately in an evaluation. ``decontaminate`` leaves out rows that share ``ngram`` consecutive words, or all
    of a shorter question, with a benchmark of the run file. ``cap`` is the largest number of rows (0: all); they are
    chosen at random, but the same ones in every run.
    """

    dedupe: bool = False
    fresh: Literal["", "only", "mark"] = ""
    decontaminate: bool = False
    ngram: int = Field(default=13, ge=4)
    cap: int = Field(default=0, ge=0)
    curriculum: CurriculumTable | None = None


@dataclass(frozen=True)
class _Selected:
    """The rows ``numbers`` of ``source``, in this order; a number may occur more than once."""

    source: Any
    numbers: Sequence[int]

    @property
    def size(self) -> int:
        return len(self.numbers)

    @cached_property
    def selection(self) -> str:
        """A fingerprint of the selected row numbers."""
        inner = getattr(self.source, "selection", "")
        return hashlib.sha256(f"{inner}/{list(self.numbers)}".encode()).hexdigest()[:16]


class SelectedPrompts(_Selected):
    """Selected rows of a prompt source."""

    def row(self, number: int) -> PromptRow:
        found: PromptRow = self.source.row(self.numbers[number])
        return found


class SelectedDocuments(_Selected):
    """Selected documents of a document source."""

    def document(self, number: int, level: float) -> Document:
        found: Document = self.source.document(self.numbers[number], level)
        return found


def selected(source: Any, numbers: Sequence[int], documents: bool = False) -> Any:
    return SelectedDocuments(source, numbers) if documents else SelectedPrompts(source, numbers)


@dataclass(frozen=True)
class Marked:
    """The rows of ``source``; those without a date of ``cutoff`` or later have ``STALE_ROW`` in their metadata."""

    source: Any
    cutoff: datetime.date

    @property
    def size(self) -> int | None:
        size: int | None = self.source.size
        return size

    def row(self, number: int) -> PromptRow:
        found: PromptRow = self.source.row(number)
        return found if is_fresh(found, self.cutoff) else replace(found, metadata={**found.metadata, STALE_ROW: True})


def select(source: Any, table: SelectTable, cutoff: datetime.date | None, where: str, documents: bool = False) -> Any:
    """Apply the options of ``table`` that need only the source itself: ``fresh``, ``dedupe`` and ``cap``.

    Raises RunFileError for options that do not fit the source, DataError if ``fresh = "only"`` leaves no row.
    """
    if not (table.dedupe or table.fresh or table.cap):
        return source
    if table.fresh and cutoff is None:
        raise RunFileError(
            f"{where} select.fresh = {table.fresh!r} needs the model's cut-off: [run] cutoff = 2024-07-01"
        )
    if table.fresh and documents:
        raise RunFileError(f"{where} select.fresh = {table.fresh!r}: documents have no date")
    if table.fresh == "mark":
        source = Marked(source, cutoff)  # type: ignore[arg-type]
    if not (table.dedupe or table.cap or table.fresh == "only"):
        return source
    size = finite(source, where)
    numbers = list(range(size))
    if table.fresh == "only":
        numbers = [n for n, row in read_rows(source, numbers) if row is None or is_fresh(row, cutoff)]  # type: ignore[arg-type]
        if size and not numbers:
            raise DataError(f"{where} select.fresh = 'only': none of its {size} rows has a date of {cutoff} or later")
    if table.dedupe:
        numbers = distinct(source, numbers, documents)
    return selected(source, capped(numbers, table.cap, where), documents)


def finite(source: Any, where: str) -> int:
    """The size of a finite source. Raises RunFileError for an endless one."""
    size: int | None = source.size
    if size is None:
        raise RunFileError(
            f"{where} select: the source has no end, and its rows cannot be looked through; take select out, or give it an end"
        )
    return size


def read_rows(source: Any, numbers: Sequence[int], documents: bool = False) -> Iterator[tuple[int, Any]]:
    """Pairs of number and row; None for an unreadable row, which stays, and becomes a dead letter when it is asked."""
    for number in numbers:
        try:
            yield number, source.document(number, 1.0) if documents else source.row(number)
        except Exception:  # the plug-in boundary: a source may be third-party code
            yield number, None


def distinct(source: Any, numbers: Sequence[int], documents: bool = False) -> list[int]:
    """Those of ``numbers`` whose question has not occurred before; unreadable rows stay."""
    seen: set[bytes] = set()
    kept = []
    for number, row in read_rows(source, numbers, documents):
        if row is not None:
            mark = hashlib.blake2b(question_of(row).encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if mark in seen:
                continue
            seen.add(mark)
        kept.append(number)
    return kept


def capped(numbers: Sequence[int], cap: int, where: str) -> list[int]:
    """At most ``cap`` of ``numbers`` (0: all), in rising order; ``where`` seeds the random choice."""
    if not cap or len(numbers) <= cap:
        return list(numbers)
    return sorted(random.Random(f"cap/{where}/{len(numbers)}").sample(list(numbers), cap))


def is_fresh(row: PromptRow, cutoff: datetime.date) -> bool:
    """Whether the row's ``date`` is ``cutoff`` or later; False without a valid date."""
    told = str(row.metadata.get("date") or "")
    try:
        return datetime.date.fromisoformat(told[:10]) >= cutoff
    except ValueError:
        return False
