"""Several document sources as one: by weights, or each as often as it has documents. Which document comes when follows from its number alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from broker.errors import DataError
from learner.data.source import Document, DocumentSource
from learner.data.turns import Turns


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

    def document(self, number: int, level: float) -> Document:
        part, row = self._place(number)
        found = part.source.document(row, level)
        return found if part.template is None else replace(found, template=part.template)

    def part_of(self, number: int) -> tuple[str, DocumentSource, int]:
        """The name of the source that document ``number`` comes from, the source, and the row in it."""
        part, row = self._place(number)
        return part.name, part.source, row

    def _place(self, number: int) -> tuple[Part, int]:
        which, row = self._turns.of(number)
        part = self._parts[which]
        size = part.source.size
        if size is not None:
            epoch, at = divmod(row, size)
            row = self._order(which, epoch, size)[at]
        return part, row

    def _permutation(self, which: int, epoch: int, size: int) -> Sequence[int]:
        rows = list(range(size))
        random.Random(f"{self._seed}/{self._parts[which].name}/{epoch}").shuffle(rows)
        return rows
