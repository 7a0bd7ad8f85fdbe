"""Which rows of a source are used (``[data.NAME] select``): without repetitions, only fresh ones, a limited number, or in another order.

A selection is a list of row numbers of the source beneath it; the rows keep what they say, and have new numbers.
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
    """Chooses rows by how often they were answered correctly so far, read from the log when a stage begins (``learner.planning.curriculum``).

    The pass rate of a row is the share of its judged samples that ``rewarder`` gave at least 1. Rows below ``least`` or above ``most`` are left out. A
    row of rate p comes ``1 + round((repeat - 1) * 4 p (1 - p))`` times an epoch: those that are answered right half of the time come ``repeat``
    times. Rows with fewer than ``fewest`` judged samples are ``unseen``: they come once, or not at all.
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
    """``dedupe``: each question once, the first row of it. ``fresh`` looks at the date of a row (``metadata["date"]``, or column ``date``) and ``[run] cutoff``:
    ``only`` leaves out rows that are older than it or have no date, ``mark`` keeps them apart in the figures of an evaluation. ``decontaminate``:
    leave out rows that share ``ngram`` words in a row with a question of a benchmark of the run file. ``cap``: so many rows at most, chosen by
    chance (the same ones in every run; 0: all).
    """

    dedupe: bool = False
    fresh: Literal["", "only", "mark"] = ""
    decontaminate: bool = False
    ngram: int = Field(default=13, ge=4)
    cap: int = Field(default=0, ge=0)
    curriculum: CurriculumTable | None = None


@dataclass(frozen=True)
class _Selected:
    """Rows ``numbers`` of ``source``, in this order; one may come more than once."""

    source: Any
    numbers: Sequence[int]

    @property
    def size(self) -> int:
        return len(self.numbers)

    @cached_property
    def selection(self) -> str:
        """A fingerprint of which rows these are."""
        inner = getattr(self.source, "selection", "")
        return hashlib.sha256(f"{inner}/{list(self.numbers)}".encode()).hexdigest()[:16]


class SelectedPrompts(_Selected):
    """Some of the rows of a source of prompts."""

    def row(self, number: int) -> PromptRow:
        found: PromptRow = self.source.row(self.numbers[number])
        return found


class SelectedDocuments(_Selected):
    """Some of the documents of a source of them."""

    def document(self, number: int, level: float) -> Document:
        found: Document = self.source.document(self.numbers[number], level)
        return found


def selected(source: Any, numbers: Sequence[int], documents: bool = False) -> Any:
    return SelectedDocuments(source, numbers) if documents else SelectedPrompts(source, numbers)


@dataclass(frozen=True)
class Marked:
    """The rows of ``source``; those not known to date from ``cutoff`` or later are marked in their metadata."""

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
    """The rows of ``source`` that remain by what the source itself says: marks, dates, repetitions, the cap. Raises DataError, RunFileError."""
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
    """The size of a source that has an end. Raises RunFileError."""
    size: int | None = source.size
    if size is None:
        raise RunFileError(
            f"{where} select: the source has no end, and its rows cannot be looked through; take select out, or give it an end"
        )
    return size


def read_rows(source: Any, numbers: Sequence[int], documents: bool = False) -> Iterator[tuple[int, Any]]:
    """The rows of these numbers; None for one that cannot be read: it stays, and becomes a dead letter when it is asked."""
    for number in numbers:
        try:
            yield number, source.document(number, 1.0) if documents else source.row(number)
        except DataError:
            yield number, None


def distinct(source: Any, numbers: Sequence[int], documents: bool = False) -> list[int]:
    """Those of ``numbers`` whose question did not stand before."""
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
    """At most ``cap`` of ``numbers``, in their order; which ones, ``where`` decides (0: all)."""
    if not cap or len(numbers) <= cap:
        return list(numbers)
    return sorted(random.Random(f"cap/{where}/{len(numbers)}").sample(list(numbers), cap))


def is_fresh(row: PromptRow, cutoff: datetime.date) -> bool:
    """Whether a row says that it was published on ``cutoff`` or later."""
    told = str(row.metadata.get("date") or "")
    try:
        return datetime.date.fromisoformat(told[:10]) >= cutoff
    except ValueError:
        return False
