"""Dead letters of rows that supervised stages leave out. They are written before the step that is made without them, found again after a
restart, and read again once they are replayed (``headrace broker dlq replay``)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

from broker.errors import DecodeError
from broker.log import Log
from broker.messages import DeadLetter, Settled, decode, encode
from broker.patience import PatientProducer, Seldom, wait_for_log
from broker.run import Run
from learner.data.reading import OddRow, refuse_many
from learner.data.source import fault_of
from learner.planning.join import ROWS, each
from monitoring.daemon import Stop

log_ = logging.getLogger("learner")
SAID_SECONDS = 20.0  # between two words on rows that are left out
KEY = "document"
T = TypeVar("T")


@dataclass
class Buried:
    """The odd rows of stage ``index``; a ``Graveyard``. ``away`` hears whether the log answers."""

    run: Run
    index: int
    stop: Stop
    away: Callable[[bool], None] = lambda away: None
    _numbers: dict[int, int] = field(default_factory=dict)  # offset of a dead letter -> number of the document
    _out: set[int] = field(default_factory=set)  # those numbers: each document of a step is looked up
    _replays: list[int] = field(default_factory=list)
    _seldom: Seldom = field(default_factory=lambda: Seldom(SAID_SECONDS))
    _unsaid: int = 0

    def __enter__(self) -> Buried:
        self._log: Log = self.run.open_log(self.stop)
        self._reader = self._log.reader(self.run.topics.deadletters)
        self._producer = PatientProducer(self._log.producer(), self.stop, self.away)
        self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._say()
        self._producer.close()
        self._reader.close()
        self._log.close()

    def __contains__(self, number: object) -> bool:
        return number in self._out

    def bury(self, odd: Sequence[OddRow]) -> None:
        for one in odd:
            letter = DeadLetter(
                f"{ROWS}{one.data}", 0, one.row, f"{KEY} {self.index}/{one.number}".encode(), b"", one.why, "learner",
                created=time.time(),
            )  # fmt: skip
            self._producer.send(self.run.topics.deadletters, letter.topic.encode(), encode(letter))
        self._producer.flush()
        self._look()
        self._unsaid += len(odd)
        if self._seldom():
            self._say(odd[-1])

    def _say(self, last: OddRow | None = None) -> None:
        if not self._unsaid:
            return
        why = f"; [data.{last.data}] row {last.row}: {last.why}" if last is not None else ""
        log_.warning(
            "%d rows cannot be trained on and lie in the dead letters (%d of this stage)%s",
            self._unsaid, len(self._numbers), why,
        )  # fmt: skip
        self._unsaid = 0

    def replayed(self) -> list[tuple[int, int]]:
        self._look()
        found = [(letter, self._numbers[letter]) for letter in self._replays if letter in self._numbers]
        self._replays.clear()
        for _, number in found:
            log_.info("document %d was left out, and is read again", number)
        return found

    def _look(self) -> None:
        """Read what the dead letters have had since the last look."""

        def look() -> None:
            for record in each(self._reader, self._log.ends(self.run.topics.deadletters)):
                try:
                    message = decode(record.value)
                except DecodeError:
                    continue
                if isinstance(message, Settled) and message.action == "replayed":
                    self._replays.append(message.offset)
                elif isinstance(message, DeadLetter) and (number := self._number(message)) is not None:
                    self._numbers[record.offset] = number
                    self._out.add(number)

        wait_for_log(look, self.stop, self.away)

    def _number(self, letter: DeadLetter) -> int | None:
        """The document that a dead letter of this stage is of; None for any other letter."""
        begin = f"{KEY} {self.index}/"
        key = letter.key.decode("utf-8", "replace")
        told = key.removeprefix(begin)
        return int(told) if letter.topic.startswith(ROWS) and key.startswith(begin) and told.isdigit() else None


def readable(rows: Any, parse: Callable[[int], T], name: str, most: float, graves: Buried) -> list[tuple[int, T]]:
    """The rows that ``parse`` can read, with their numbers, for a stage that reads all of them when it begins; the odd ones are buried.

    Raises DataError where more than the share ``most`` are odd.
    """
    found, odd, where = [], [], str(getattr(rows, "where", ""))
    for number in range(len(rows)):
        try:
            found.append((number, parse(number)))
        except Exception as error:  # the plug-in boundary: a source is anybody's code
            why = fault_of(error, f"{where} row {number}")
            odd.append(OddRow(number, name, number, why if where in why else f"{where} {why}"))
    if odd:
        refuse_many(len(odd), len(rows), len(rows), most, f"[data.{name}]", odd[-1].why)
        if new := [one for one in odd if one.number not in graves]:
            graves.bury(new)
    return found
