"""Document sources as a stage reads them, pass after pass: one in its order, or several as one, by weights or each as often as it has documents.

Which document comes when follows from its number alone, and ``place`` says which row of which source it is.
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
    """Documents by a number that counts on over the passes; ``size`` is that of one pass."""

    def place(self, number: int) -> tuple[str, int]:
        """The source and the row of document ``number``."""


@dataclass(frozen=True, slots=True)
class InOrder:
    """One source, in its own order in every pass."""

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
    """One of the sources; ``weight`` 0: as many documents as it has. ``template`` holds its own options of the chat template."""

    name: str
    source: DocumentSource
    weight: float = 0.0
    template: Mapping[str, Any] | None = None


class MixedDocuments:
    """Documents of all ``parts`` in turn: of the one that is furthest behind its weight. A source with an end is read in a new order in every pass.

    ``size`` is that of one pass: of all sources without weights, each once. Raises DataError for a source without documents or, without
    weights, without an end.
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
        """The part of document ``number``, and its row there."""
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
