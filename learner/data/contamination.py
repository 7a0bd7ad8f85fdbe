"""Finds training data that also occurs in a benchmark: ``ngram`` words in a row, or the whole of a shorter question.

Word sequences that occur in many questions of a benchmark are its wording, not its questions, and do not count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from learner.data.selection import read_rows
from learner.data.wording import terms_of, text_of, words_of

NGRAM = 13
"""The number of consecutive words, from GPT-3 (arXiv 2005.14165, appendix C)."""
COMMON = 5
"""A sequence is wording if it occurs in more than 1/``COMMON`` of a benchmark's questions, and in at least two."""
SHOWN = 1000


@dataclass(frozen=True, slots=True)
class Hit:
    """Row ``row`` of the training data shares the text ``shared`` with row ``of_row`` of the source ``benchmark``."""

    row: int
    benchmark: str
    of_row: int
    shared: str


@dataclass(slots=True)
class Contamination:
    """The result for ``source``: the number of ``rows`` searched, and for each contaminated row its first match."""

    source: str
    ngram: int
    rows: int = 0
    hits: list[Hit] = field(default_factory=list)

    def by_benchmark(self) -> dict[str, int]:
        return dict(Counter(hit.benchmark for hit in self.hits))

    def to_json(self) -> dict[str, Any]:
        """As JSON data, with the first ``SHOWN`` hits and the number of all."""
        told = {"source": self.source, "ngram": self.ngram, "rows": self.rows, "contaminated": len(self.hits)}
        return {**told, "by_benchmark": self.by_benchmark(), "hits": [asdict(hit) for hit in self.hits[:SHOWN]]}


class Benchmarked:
    """An index of the word sequences in benchmarks' questions. ``asked`` has the rows of each by name, with numbers."""

    def __init__(self, asked: Mapping[str, Sequence[tuple[int, Any]]], ngram: int = NGRAM) -> None:
        self.ngram = ngram
        self._grams: dict[str, tuple[str, int]] = {}
        self._short: dict[str, tuple[str, int]] = {}
        for name, rows in asked.items():
            self._take(name, rows)

    def _take(self, name: str, rows: Sequence[tuple[int, Any]]) -> None:
        places: dict[str, list[int]] = defaultdict(list)
        for number, row in rows:
            text = "\n".join(m.content for m in row.messages if m.role == "user")
            found = set(grams(words_of(text), self.ngram))
            if not found and text.strip():
                self._short.setdefault(terms_of(text), (name, number))
            for gram in found:
                places[gram].append(number)
        most = max(1, len(rows) // COMMON)
        for gram, numbers in places.items():
            if len(numbers) <= most:
                self._grams.setdefault(gram, (name, numbers[0]))

    def hit(self, number: int, row: Any) -> Hit | None:
        """The first match of row ``number`` of the training data with a benchmark; None if there is none."""
        text = text_of(row)
        for gram in grams(words_of(text), self.ngram):
            if gram in self._grams:
                return Hit(number, *self._grams[gram], gram)
        for piece in pieces(row):
            if (place := self._short.get(terms_of(piece))) is not None:
                return Hit(number, *place, piece[:500])
        return None


def grams(words: Sequence[str], n: int) -> Iterator[str]:
    """All sequences of ``n`` consecutive words, in order; none if there are fewer words."""
    for at in range(len(words) - n + 1):
        yield " ".join(words[at : at + n])


def pieces(row: Any) -> list[str]:
    """The parts of a row that may be a whole short question: each user message, or each span of a plain document."""
    if getattr(row, "messages", ()):
        return [m.content for m in row.messages if m.role == "user"]
    return [span.text for span in row.spans]


def looked_through(source: str, rows: Iterator[tuple[int, Any]], against: Benchmarked) -> Contamination:
    """Search all ``rows`` (pairs of number and row; None for an unreadable one) for matches with the benchmarks."""
    found = Contamination(source, against.ngram)
    for number, row in rows:
        found.rows += 1
        if row is not None and (hit := against.hit(number, row)) is not None:
            found.hits.append(hit)
    return found


def asked_rows(source: Any, questions: int) -> list[tuple[int, Any]]:
    """The rows of a benchmark that are asked: the readable ones among its first ``questions``, with their numbers."""
    size = source.size
    numbers = range(questions if size is None else min(size, questions))
    return [(number, row) for number, row in read_rows(source, numbers) if row is not None]
