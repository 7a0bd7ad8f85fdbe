"""Decontamination: rows that share a run of words with a held-out question are left out of what is trained.

The usual measure of contamination (GPT-3, arXiv 2005.14165, appendix C, 13 words; DeepSeek-R1's supplement, 10). Texts are compared without
case, punctuation and spacing; one with fewer words than that counts where it is the same as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from broker.errors import DataError
from learner.data.source import Document, PromptRow, row_of

WORD = re.compile(r"[^\W_]+")
MOST = 1_000_000
"""Rows of a source with an end that are looked through."""
Grams = frozenset[tuple[str, ...]]


@dataclass(frozen=True)
class Clean:
    """``source`` without the rows that share ``words`` words in a row with a question of one of the sources ``against`` (by name).

    Rows keep their order and get new numbers. Of a source without end, such a row cannot be asked (DataError). ``documents``: the source has
    documents. Raises DataError where a source that is compared with has no end.
    """

    source: Any
    against: Mapping[str, Any]
    words: int
    documents: bool = False

    def __post_init__(self) -> None:
        for name, source in self.against.items():
            if source.size is None:
                raise DataError(
                    f"decontaminate against [data.{name}], which has no end: name a source whose rows can be counted"
                )

    @property
    def size(self) -> int | None:
        return None if self.source.size is None else len(self._kept)

    @property
    def left_out(self) -> int:
        """How many rows of a source with an end are left out."""
        return 0 if self.source.size is None else self.source.size - len(self._kept)

    def row(self, number: int) -> PromptRow:
        row: PromptRow = self.source.row(self._number(number))
        return self._clean(row, number)

    def document(self, number: int, level: float) -> Document:
        document: Document = self.source.document(self._number(number), level)
        return self._clean(document, number)

    def _number(self, number: int) -> int:
        return number if self.source.size is None else self._kept[number]

    def _clean(self, row: Any, number: int) -> Any:
        if self.source.size is None and self._shares(row):
            raise DataError(
                f"row {number} shares {self.words} words in a row with a held-out question of {', '.join(self.against)}"
            )
        return row

    @cached_property
    def _known(self) -> Grams:
        found: set[tuple[str, ...]] = set()
        for source in self.against.values():
            for number in range(min(source.size, MOST)):
                try:
                    found.update(grams(asked(row_of(source, number)), self.words))
                except DataError:  # it cannot be asked
                    continue
        return frozenset(found)

    @cached_property
    def _kept(self) -> Sequence[int]:
        assert self.source.size is not None
        return [number for number in range(self.source.size) if number >= MOST or not self._out(number)]

    def _out(self, number: int) -> bool:
        try:
            return self._shares(self.source.document(number, 1.0) if self.documents else self.source.row(number))
        except Exception:  # a source is anybody's code; whoever asks for the row hears of it
            return False

    def _shares(self, row: PromptRow | Document) -> bool:
        return any(gram in self._known for text in said(row) for gram in grams([text], self.words))


def asked(row: PromptRow) -> list[str]:
    """The question of a row, without its system turn."""
    return ["\n".join(m.content for m in row.messages if m.role != "system")]


def said(row: PromptRow | Document) -> list[str]:
    """The texts of a row that may hold a question."""
    if isinstance(row, PromptRow):
        return asked(row)
    return [span.text for span in row.spans] if row.spans else [m.content for m in row.messages if m.role == "user"]


def grams(texts: Iterable[str], words: int) -> Iterator[tuple[str, ...]]:
    """Every run of ``words`` words of each text; of a shorter text all of it, and of one without words nothing."""
    for text in texts:
        found = WORD.findall(text.casefold())
        if found:
            yield from (tuple(found[i : i + words]) for i in range(max(1, len(found) - words + 1)))
