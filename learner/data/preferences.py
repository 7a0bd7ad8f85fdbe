"""Parses the rows that a reward model learns from: which of two replies is preferred, or the class of a reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker.errors import DataError
from broker.messages import ChatMessage

CLASSES = 1024
"""Labels must be below this. The head has an output for each class up to the highest label, so a mistaken label would
make it huge.
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to one conversation, of which the first is preferred."""

    messages: tuple[ChatMessage, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A reply to a conversation, and its class (from 0)."""

    messages: tuple[ChatMessage, ...]
    reply: str
    label: int


def read_row(row: Mapping[str, Any], number: int) -> Pair | Labelled:
    """Parse a row as a Pair or a Labelled. Raises DataError that names the row, the key and what it must be."""
    messages = _messages(row, number)
    if "chosen" in row or "rejected" in row:
        return Pair(messages, _text(row, "chosen", number), _text(row, "rejected", number))
    label = row.get("label")
    if not isinstance(label, int | bool) or not 0 <= label < CLASSES:
        raise DataError(
            f"row {number}: label is {str(label)[:60]}; it must be a class from 0 to {CLASSES - 1} (or give chosen and rejected)"
        )
    return Labelled(messages, _text(row, "reply", number), int(label))


def _messages(row: Mapping[str, Any], number: int) -> tuple[ChatMessage, ...]:
    if "messages" not in row:
        return (ChatMessage("user", _text(row, "prompt", number)),)
    turns = row["messages"]
    if isinstance(turns, str | Mapping) or not isinstance(turns, Sequence):
        raise DataError(f"row {number}: messages must be a list of turns with role and content")
    found = []
    for place, turn in enumerate(turns):
        said = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if not all(isinstance(part, str) for part in said):
            shown = str(turn)[:60]
            raise DataError(f"row {number}: messages[{place}] is {shown}; it must have a role and a content, both text")
        found.append(ChatMessage(*map(str, said)))
    return tuple(found)


def _text(row: Mapping[str, Any], key: str, number: int) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"row {number}: {key} is {str(value)[:60]!r}; it must be a text")
    return value
