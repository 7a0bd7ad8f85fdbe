"""What every benchmark's class shares: cells by name, the question put into a template, and the date that a row carries."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from broker.errors import DataError
from broker.messages import ChatMessage
from broker.wire import Json
from learner.data.files import Rows
from learner.data.source import PromptRow

MATH_JUDGE, CHOICE_JUDGE = "rewarders.math:MathAccuracy", "rewarders.choice:Choice"
BOXED = "{question}\n\nPut the final answer in \\boxed{}."


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of a benchmark before it is put into the template: its own, or the class's (empty).

    ``date`` is when it was published, ``YYYY-MM-DD``; empty: not known.
    """

    question: str
    answer: str | None = None
    kind: str = ""
    metadata: Mapping[str, Json] = field(default_factory=dict)
    date: str = ""
    template: str = ""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published benchmark. ``rows`` and ``where`` come from the source's ``path``, ``split`` and ``config``.

    ``template`` wraps the question (``{question}`` stands for it), ``system`` goes before it. A class says by ``judged_by`` which rewarder can
    judge its rows. Raises DataError that names the row, the column and what is wrong.
    """

    judged_by: ClassVar[tuple[str, ...]] = (MATH_JUDGE,)
    """The rewarders (``module:Class``) that know what its rows carry; the pre-flight compares them with the run file's."""
    rows: Rows
    where: str
    template: str = "{question}"
    system: str = ""

    def __post_init__(self) -> None:
        if "{question}" not in self.template:
            raise DataError(f"template = {self.template!r} must hold {{question}}")

    @property
    def size(self) -> int | None:
        return len(self.rows)

    def row(self, number: int) -> PromptRow:
        found = self.rows[number]
        if not isinstance(found, Mapping):
            raise DataError(f"{self.where} row {number} is a {type(found).__name__}, not a table of columns")
        asked = self.asked(Cells(found, f"{self.where} row {number}"), number)
        if not asked.question.strip():
            raise DataError(f"{self.where} row {number} asks nothing")
        user = ChatMessage("user", (asked.template or self.template).replace("{question}", asked.question))
        messages = (ChatMessage("system", self.system), user) if self.system else (user,)
        metadata = {**asked.metadata, **({"date": asked.date} if asked.date else {})}
        return PromptRow(messages, asked.answer, asked.kind, metadata)

    def asked(self, cells: Cells, number: int) -> Asked:
        """The question of a row. Raises DataError."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Cells:
    """The columns of one row, looked up whatever their case; ``place`` names the row in errors."""

    row: Mapping[str, Any]
    place: str

    def find(self, *names: str) -> Any:
        """The first of these columns that is there and holds something; None."""
        known = {str(key).casefold(): key for key in self.row}
        for name in names:
            key = known.get(name.casefold())
            if key is not None and self.row[key] is not None and self.row[key] != "":
                return self.row[key]
        return None

    def need(self, *names: str) -> Any:
        """As ``find``. Raises DataError where there is none."""
        found = self.find(*names)
        if found is None:
            have = ", ".join(map(str, self.row)) or "no columns"
            raise DataError(
                f"{self.place} has no column {' or '.join(map(repr, names))} with something in it; it has {have}"
            )
        return found

    def text(self, *names: str) -> str:
        """A column of text, or a number as text. Raises DataError."""
        found = self.need(*names)
        if isinstance(found, bool) or not isinstance(found, str | int | float):
            raise DataError(
                f"{self.place} column {names[0]!r} is a {type(found).__name__}, not text: {str(found)[:80]!r}"
            )
        return str(found)

    def date(self, *names: str) -> str:
        """A column that holds a date or begins with one (``2024-05-01T00:00:00``) as ``YYYY-MM-DD``; empty where there is none. Raises DataError."""
        found = self.find(*names)
        if found is None:
            return ""
        if isinstance(found, datetime.date):
            return found.isoformat()[:10]
        return day(str(found), f"{self.place} column {names[0]!r}")


def day(text: str, where: str) -> str:
    """``text`` as a day, ``YYYY-MM-DD``; a year alone is its first day. Raises DataError, which begins with ``where``."""
    text = text.strip()
    try:
        return datetime.date.fromisoformat(
            f"{text}-01-01" if text.isdecimal() and len(text) == 4 else text[:10]
        ).isoformat()
    except ValueError:
        raise DataError(f"{where} is {text[:40]!r}; a date must be YYYY-MM-DD") from None
