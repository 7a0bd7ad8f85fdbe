"""Numbers the documents that a stage reads, over all passes: of one source in its own order, or of a mixture of
several.

A mixture takes from each source in proportion to its weight, or to its size. The number of a document alone determines
which it is; ``place`` gives its source and row.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

from broker.errors import DataError
from learner.data.source import Document, DocumentSource
from learner.data.turns import Turns


@runtime_checkable
class Reading(DocumentSource, Protocol):
    """Documents by a number that continues over all passes; ``size`` is the number of documents in one pass (None:
    endless).
    """

    def place(self, number: int) -> tuple[str, int]:
        """The source and the row of document ``number``."""


@dataclass(frozen=True, slots=True)
class InOrder:
    """A single source, in its own order in every pass."""

    name: str
    source: DocumentSource

    @property
    def size(self) -> int | None:
        return self.source.size

    def place(self, number: int) -> tuple[str, int]:
        return self.name, number if self.size is None else number % self.size

    def document(self, number: int, level: float) -> Document:
        return self.source.document(self.place(number)[1], level)


@dataclass(frozen=True, slots=True)
class Part:
    """One source of a mixture. Its ``weight`` is its share relative to the others; 0 means its number of documents.
    ``template`` has its own options of the chat template.
    """

    name: str
    source: DocumentSource
    weight: float = 0.0
    template: Mapping[str, Any] | None = None


class MixedDocuments:
    """Takes each document from the part that is furthest behind its weight (``Turns``).

    A finite source is read in a new random order in each pass over it. ``size`` is the sum of the sources' sizes, or
    None if one is endless. Raises DataError for a source without documents, and for an endless one without a weight.
    """

    def __init__(self, parts: Sequence[Part], seed: int) -> None:
        for part in parts:
            if part.source.size == 0:
                raise DataError(f"[data.{part.name}] has no documents")
            if part.source.size is None and not part.weight:
                raise DataError(
                    f"[data.{part.name}] has no end: give the sources weights, data = {{ {part.name} = 1.0, ... }}"
                )
        self._parts, self._seed = tuple(parts), seed
        self._turns = Turns([part.weight or float(part.source.size or 0) for part in parts])
        self._order = lru_cache(maxsize=2 * len(parts))(self._permutation)

    @property
    def size(self) -> int | None:
        sizes = [part.source.size for part in self._parts]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def place(self, number: int) -> tuple[str, int]:
        which, row = self._place(number)
        return self._parts[which].name, row

    def document(self, number: int, level: float) -> Document:
        which, row = self._place(number)
        part = self._parts[which]
        found = part.source.document(row, level)
        return found if part.template is None else replace(found, template=part.template)

    def _place(self, number: int) -> tuple[int, int]:
        """The index of the part of document ``number``, and its row there."""
        which, before = self._turns.of(number)
        size = self._parts[which].source.size
        if size is None:
            return which, before
        epoch, at = divmod(before, size)
        return which, self._order(which, epoch, size)[at]

    def _permutation(self, which: int, epoch: int, size: int) -> Sequence[int]:
        rows = list(range(size))
        random.Random(f"{self._seed}/{self._parts[which].name}/{epoch}").shuffle(rows)
        return rows
