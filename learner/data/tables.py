"""Turns rows of a table (``learner.data.files``) into prompts or documents. ``columns`` maps our names to the table's.

``prompt`` is text (one user turn); it or ``messages`` may be a list of {role, content} (or {from, value}, or with
content in parts of text). ``answer``, ``kind``, ``date`` (``YYYY-MM-DD``, kept in the metadata) and ``metadata`` are
optional. An answer is text, a number, or a list of right answers: the first becomes ``answer``, and all of them
``metadata["answers"]``. ``system`` is put before each conversation as a system turn; ``template`` wraps a text prompt,
in place of ``{prompt}``.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.errors import DataError
from broker.messages import ChatMessage
from learner.data.files import Rows
from learner.data.source import Document, PromptRow, Span

ROLES = {"human": "user", "gpt": "assistant"}
"""Names of roles in the format {from, value}, and ours."""
COLUMNS = ("prompt", "messages", "answer", "kind", "metadata", "response", "text", "date", "chat")


@dataclass(frozen=True)
class _Table:
    rows: Rows
    where: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name of a column -> its name in the file."""
    system: str = ""
    template: str = "{prompt}"

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in COLUMNS:
                raise DataError(f"columns has {name!r}; it may rename {', '.join(COLUMNS)}")
        if "{prompt}" not in self.template:
            raise DataError(f"template = {self.template!r} must hold {{prompt}}")

    @property
    def size(self) -> int | None:
        return len(self.rows)

    def _cell(
        self, row: Mapping[str, Any], number: int, name: str, kind: type | tuple[type, ...], needed: bool = False
    ) -> Any:
        column = self.columns.get(name, name)
        value = row.get(column)
        if value is None or (
            isinstance(value, float) and math.isnan(value)
        ):  # in columns of numbers, NaN is a missing value
            if needed:
                raise DataError(f"{self.where} row {number} has no column {column!r}; it has {', '.join(row)}")
            return None
        if not isinstance(value, kind):
            raise DataError(
                f"{self.where} row {number} column {column!r} is a {type(value).__name__}: {str(value)[:80]!r}"
            )
        return value

    def _messages(self, row: Mapping[str, Any], number: int) -> tuple[ChatMessage, ...]:
        turns = self._cell(row, number, "messages", list)
        column = self.columns.get("messages", "messages")
        if turns is None:
            turns, column = self._cell(row, number, "prompt", (str, list), True), self.columns.get("prompt", "prompt")
        if isinstance(turns, str):
            messages = [ChatMessage("user", self.template.replace("{prompt}", turns))]
        elif turns:
            messages = [self._turn(turn, number, column) for turn in turns]
        else:
            raise DataError(f"{self.where} row {number} column {column!r} is empty")
        return (ChatMessage("system", self.system), *messages) if self.system else tuple(messages)

    def _turn(self, turn: Any, number: int, column: str) -> ChatMessage:
        """Parse one message of a list, {role, content} or {from, value}."""
        if isinstance(turn, dict):
            role, content = turn.get("role", turn.get("from")), _text(turn.get("content", turn.get("value")))
            if isinstance(role, str) and content is not None:
                return ChatMessage(ROLES.get(role, role), content)
        raise DataError(
            f"{self.where} row {number} column {column!r}: a message must be {{role, content}}, not {str(turn)[:80]!r}"
        )

    def _answers(self, row: Mapping[str, Any], number: int) -> list[str]:
        """The right answers; none if the row has no ``answer``."""
        value = self._cell(row, number, "answer", (str, int, float, list))
        found = value if isinstance(value, list) else [] if value is None else [value]
        for one in found:
            if not isinstance(one, str | int | float):
                column = self.columns.get("answer", "answer")
                raise DataError(
                    f"{self.where} row {number} column {column!r} holds a {type(one).__name__}: {str(one)[:80]!r}; "
                    "an answer is text or a number, or a list of them"
                )
        return [str(one) for one in found]


def _text(content: Any) -> str | None:
    """The text of a message's content, or its parts joined if all of them are text; else None."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(p["text"] for p in content)
    return None


def _wanted(turn: Any, where: str, number: int) -> bool:
    """Whether a message is trained on, by its own ``train`` or ``weight``; without them, it is. Raises DataError."""
    said = turn.get("train", turn.get("weight", True))
    if said not in (True, False, None):
        raise DataError(f"{where} row {number}: train (or weight) of a message is {said!r}; it must be true or false")
    return said is not False and said != 0


@dataclass(frozen=True)
class TablePrompts(_Table):
    """Prompts from a table (see the module)."""

    def row(self, number: int) -> PromptRow:
        row = self.rows[number]
        answers = self._answers(row, number)
        metadata = self._cell(row, number, "metadata", dict) or {}
        metadata = {key: value for key, value in metadata.items() if value is not None}
        if (date := self._cell(row, number, "date", (str, int, datetime.date))) is not None:
            metadata["date"] = str(date)[:10]
        return PromptRow(
            self._messages(row, number),
            answers[0] if answers else None,
            self._cell(row, number, "kind", str) or "",
            {**metadata, "answers": answers} if len(answers) > 1 else metadata,
        )


@dataclass(frozen=True)
class TableDocuments(_Table):
    """Documents from a table: ``messages``, or ``prompt`` and ``response``, or plain ``text``. Column ``chat`` has a
    row's own options of the chat template.

    In a conversation of several turns, ``train = "all"`` trains every reply and ``"last"`` only the last one; a message
    with ``"train": false`` (or ``"weight": 0``) is never trained on.
    """

    train: str = "all"

    def __post_init__(self) -> None:
        _Table.__post_init__(self)
        if self.train not in ("all", "last"):
            raise DataError(f"train = {self.train!r}; use 'all' (every reply) or 'last' (the last one alone)")

    def document(self, number: int, level: float) -> Document:
        row = self.rows[number]
        text = self._cell(row, number, "text", str)
        if text is not None:
            return Document(spans=(Span(text, True),), where=self._named(number, "text"))
        messages, columns = self._messages(row, number), ["messages" if self._has(row, "messages") else "prompt"]
        if messages[-1].role != "assistant":
            response = self._cell(row, number, "response", str, needed=True)
            messages, columns = (*messages, ChatMessage("assistant", response)), [*columns, "response"]
        trained, chat = self._trained(row, number, messages), self._cell(row, number, "chat", dict)
        return Document(messages=messages, template=chat, trained=trained, where=self._named(number, *columns))

    def _has(self, row: Mapping[str, Any], name: str) -> bool:
        return row.get(self.columns.get(name, name)) is not None

    def _named(self, number: int, *columns: str) -> str:
        """File, row and columns, for error texts."""
        names = " and ".join(repr(self.columns.get(name, name)) for name in columns)
        return f"{self.where} row {number} column{'s' * (len(columns) > 1)} {names}"

    def _trained(self, row: Mapping[str, Any], number: int, messages: Sequence[ChatMessage]) -> tuple[bool, ...]:
        """For each message, whether it is trained on, by its own marks and ``train``; empty if every reply is."""
        turns = row.get(self.columns.get("messages", "messages"))
        if not isinstance(turns, list):
            turns = row.get(self.columns.get("prompt", "prompt"))
        told = [_wanted(turn, self.where, number) for turn in turns] if isinstance(turns, list) else [True]
        ahead = int(bool(self.system))  # the system turn that this source adds
        wanted = [True] * ahead + told + [True] * (len(messages) - ahead - len(told))
        if self.train == "last":
            wanted = [False] * (len(messages) - 1) + wanted[-1:]
        if not any(w for w, m in zip(wanted, messages, strict=True) if m.role == "assistant"):
            raise DataError(f"{self.where} row {number}: no reply of it is to be trained")
        return () if all(wanted) else tuple(wanted)


@dataclass(frozen=True)
class TableRows:
    """The plain rows, for a stage that reads columns of its own; ``columns`` adds some of them under other names."""

    rows: Rows
    where: str
    columns: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int, /) -> Mapping[str, Any]:
        row = self.rows[number]
        missing = [column for column in self.columns.values() if column not in row]
        if missing:
            raise DataError(f"{self.where} row {number} has no column {missing[0]!r}; it has {', '.join(row)}")
        return {**row, **{name: row[column] for name, column in self.columns.items()}}
