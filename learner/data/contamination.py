"""Finds training data that also occurs in a benchmark: ``ngram`` words in a row, or the whole of a shorter question.

Word sequences that occur in many questions of a benchmark are its wording, not its questions, and do not count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from broker.errors import DataError
from learner.data.wording import terms_of, text_of, words_of

NGRAM = 13
"""Words in a row, as GPT-3 took them (arXiv 2005.14165, appendix C)."""
COMMON = 5
"""Wording is what occurs in more than a fifth of a benchmark's questions, and in at least two."""
SHOWN = 1000


@dataclass(frozen=True, slots=True)
class Hit:
    """Row ``row`` of what is trained shares ``shared`` with row ``of_row`` of benchmark ``benchmark``."""

    row: int
    benchmark: str
    of_row: int
    shared: str


@dataclass(slots=True)
class Contamination:
    """``rows`` of ``source`` were looked at, ``hits`` has the first shared words of each that is contaminated."""

    source: str
    ngram: int
    rows: int = 0
    hits: list[Hit] = field(default_factory=list)

    def by_benchmark(self) -> dict[str, int]:
        return dict(Counter(hit.benchmark for hit in self.hits))

    def to_json(self) -> dict[str, Any]:
        """As it is kept and shown: the first ``SHOWN`` hits; all are counted."""
        told = {"source": self.source, "ngram": self.ngram, "rows": self.rows, "contaminated": len(self.hits)}
        return {**told, "by_benchmark": self.by_benchmark(), "hits": [asdict(hit) for hit in self.hits[:SHOWN]]}


class Benchmarked:
    """The word sequences of all benchmarks' questions; ``asked`` are the rows of each by name."""

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
        """What row ``number`` of the training data has in common with a benchmark; None if nothing."""
        text = text_of(row)
        for gram in grams(words_of(text), self.ngram):
            if gram in self._grams:
                return Hit(number, *self._grams[gram], gram)
        for piece in pieces(row):
            if (place := self._short.get(terms_of(piece))) is not None:
                return Hit(number, *place, piece[:500])
        return None


def grams(words: Sequence[str], n: int) -> Iterator[str]:
    """The runs of ``n`` words in order; none of fewer words."""
    for at in range(len(words) - n + 1):
        yield " ".join(words[at : at + n])


def pieces(row: Any) -> list[str]:
    """What of a row may be a whole short question: each message of the user, each span of a plain document."""
    if getattr(row, "messages", ()):
        return [m.content for m in row.messages if m.role == "user"]
    return [span.text for span in row.spans]


def looked_through(source: str, rows: Iterator[tuple[int, Any]], against: Benchmarked) -> Contamination:
    """Look for every row (number and what it says; None: it cannot be read) in the benchmarks."""
    found = Contamination(source, against.ngram)
    for number, row in rows:
        found.rows += 1
        if row is not None and (hit := against.hit(number, row)) is not None:
            found.hits.append(hit)
    return found


def asked_rows(source: Any, questions: int) -> list[tuple[int, Any]]:
    """The rows of a benchmark that are asked: its first ``questions``, those that can be read."""
    size = source.size
    rows = []
    for number in range(questions if size is None else min(size, questions)):
        try:
            rows.append((number, source.row(number)))
        except DataError:
            continue
    return rows
