"""Reads the documents of supervised training as tokens. A document that cannot be trained on becomes a dead letter; the
others are trained.

Which documents are left out depends only on the source and on the dead letters so far: a step that is redone after a
crash reads the same documents, even if a row was corrected meanwhile. A dead-lettered document comes back in two ways:
the next pass reads its row again, and if a user replays its dead letter, it joins the next step (``again``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from broker.errors import DataError
from broker.messages import IntArray
from learner.data.documents import DocumentTokenizer, Tokenized
from learner.data.mixture import Reading
from learner.data.source import fault_of

NOTHING = np.array([], np.int32)
LOOKED = 64
"""How many documents it takes before the share of odd ones is judged; fewer if the source has fewer."""


@dataclass(frozen=True, slots=True)
class OddRow:
    """A row that cannot be trained on: ``number`` of its document in the stage, ``row`` in the source ``data``."""

    number: int
    data: str
    row: int
    why: str


@dataclass(frozen=True, slots=True)
class Found:
    """The documents of a step that are trained on, each with its source and row (``places``).

    ``tokens`` has, in order, the tokens (int32 [T]) of each number of the step; an empty array for a document that was
    left out.
    """

    documents: list[Tokenized]
    places: tuple[tuple[str, int], ...]
    tokens: tuple[IntArray, ...]


class Graveyard(Protocol):
    """Where the odd documents of one stage are kept: durably, in the dead letters of the run (or see ``Memory``)."""

    def __contains__(self, number: object, /) -> bool:
        """Whether document ``number`` was buried."""

    def bury(self, odd: Sequence[OddRow]) -> None:
        """Add documents; returns once they are durable."""

    def replayed(self) -> list[tuple[int, int]]:
        """The dead letters replayed since the last call: pairs of the letter's id and the document's number."""


class Memory:
    """A graveyard in memory, for training without a log."""

    def __init__(self) -> None:
        self.odd: dict[int, OddRow] = {}

    def __contains__(self, number: object) -> bool:
        return number in self.odd

    def bury(self, odd: Sequence[OddRow]) -> None:
        self.odd.update((one.number, one) for one in odd)

    def replayed(self) -> list[tuple[int, int]]:
        return []


def refuse_many(odd: int, looked: int, size: int | None, most: float, where: str, last: str) -> None:
    """Raises DataError if too many rows are odd, because the fault is then not in single rows.

    ``looked`` is the number of rows so far. Too many is more than the share ``most`` of them, or all of them. Until
    there are ``LOOKED`` rows (or ``size``, if the source has fewer), the share is taken of that number.
    """
    enough = min(LOOKED, size or LOOKED)
    if odd > most * max(looked, enough) or (odd >= looked >= enough):
        raise DataError(
            f"{where} {odd} of {looked} rows cannot be trained on, more than max_odd = {most:g}; the last one: {last}"
        )


class DocumentReader:
    """Reads the documents of a stage, and puts the odd ones into ``graves``.

    ``longest`` is the highest number of tokens in a document, and the name of the setting that limits it. ``most`` is
    the share of odd documents, in [0, 1], above which reading fails.
    """

    def __init__(
        self,
        source: Reading,
        tokenizer: DocumentTokenizer,
        graves: Graveyard,
        longest: tuple[int, str] | None = None,
        most: float = 1.0,
    ) -> None:
        self._source, self._tokenizer, self._graves = source, tokenizer, graves
        self._longest, self._most = longest, most
        self._looked = 0
        self.odd = 0
        """The number of documents of the stage that were left out so far."""
        self._again: dict[int, list[int]] = {}
        self._taken: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"looked": self._looked, "odd": self.odd, "again": dict(self._again), "taken": list(self._taken)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave; an empty mapping (an old checkpoint) starts from the beginning."""
        self._looked, self.odd = int(state.get("looked", 0)), int(state.get("odd", 0))
        self._again = {int(step): list(numbers) for step, numbers in dict(state.get("again", {})).items()}
        self._taken = list(state.get("taken", ()))

    def plan_again(self, step: int) -> bool:
        """Schedule the documents whose dead letters were replayed for ``step``; returns whether there are any.

        The schedule is durable once ``state_dict`` is saved.
        """
        numbers = []
        for letter, number in self._graves.replayed():
            if letter not in self._taken:
                self._taken.append(letter)
                numbers.append(number)
        if numbers:
            self._again.setdefault(step, []).extend(numbers)
        return bool(numbers)

    def read(self, step: int, numbers: Iterable[int], level: float) -> Found:
        """The documents of these ``numbers`` that can be trained on, and those that ``plan_again`` scheduled for
        ``step``.

        Raises DataError if too many are odd.
        """
        odd: list[OddRow] = []
        own = {n: None if n in self._graves else self._read(n, level, odd) for n in numbers}
        again = [(n, self._read(n, level, odd)) for n in self._again.get(step, ())]
        self._looked += len(own)
        self.odd += sum(document is None for document in own.values())
        if odd:
            refuse_many(self.odd, self._looked, self._source.size, self._most, f"[data.{odd[-1].data}]", odd[-1].why)
            self._graves.bury(odd)
        kept = [(n, document) for n, document in (*own.items(), *again) if document is not None]
        return Found(
            [document for _, document in kept],
            tuple(self._source.place(n) for n, _ in kept),
            tuple(NOTHING if document is None else document.tokens for document in own.values()),
        )

    def _read(self, number: int, level: float, odd: list[OddRow]) -> Tokenized | None:
        name, row = self._source.place(number)
        where = f"[data.{name}] row {row}"
        try:
            document = self._source.document(number, level)
            found = self._tokenizer.tokenize(document)
            if self._longest is not None and len(found.tokens) > self._longest[0]:
                most, why = self._longest
                raise DataError(f"{document.where or where}: it has {len(found.tokens)} tokens, and {why} is {most}")
        except Exception as error:  # the plug-in boundary: a source may be third-party code
            odd.append(OddRow(number, name, row, fault_of(error, where)))
            return None
        return found
