"""The protocols of data sources. Rows are read by number, so that a resumed run continues exactly where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from broker.errors import DataError, MessageError
from broker.messages import ChatMessage, Prompt, encode
from broker.wire import Json

STALE_ROW = "before_cutoff"
"""Metadata key of rows that are older than the model's cut-off or have no date (``[data.NAME] select.fresh = "mark"``).
"""


def shares(**options: float) -> None:
    """Raises DataError unless each of these options of a source is a share in [0, 1]."""
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise DataError(f"{name} = {value}; it must be a share in [0, 1]")


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One question: the conversation so far, and what a rewarder needs to judge an answer."""

    messages: tuple[ChatMessage, ...]
    answer: str | None = None
    kind: str = ""
    metadata: Mapping[str, Json] = field(default_factory=dict)


class PromptSource(Protocol):
    """Questions by row number from 0. ``size`` is None for an endless, synthetic source."""

    @property
    def size(self) -> int | None: ...

    def row(self, number: int) -> PromptRow:
        """Row ``number`` (below ``size``), always the same one. Raises DataError that names the row and the fault."""


def row_of(source: PromptSource, number: int) -> PromptRow:
    """Row ``number``, checked that it can be written to the log. Raises DataError for any error: a source may be
    third-party code.
    """
    try:
        row = source.row(number)
        encode(Prompt("x-0@0", row.messages, 1, row.answer, row.kind, row.metadata))
    except DataError:
        raise
    except MessageError as error:  # half of a surrogate pair, an integer beyond 64 bits
        raise DataError(f"{_named(source, number)} cannot be written to the log: {error}") from error
    except Exception as error:
        raise DataError(fault_of(error, _named(source, number))) from error
    return row


def fault_of(error: Exception, where: str) -> str:
    """An error text for the row at ``where`` from what its source raised; a DataError already names the row."""
    return str(error) if isinstance(error, DataError) else f"{where}: {type(error).__name__}: {str(error)[:300]}"


def _named(source: PromptSource, number: int) -> str:
    where = getattr(source, "where", "")
    return f"{where} row {number}" if where else f"row {number}"


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a document: its text, whether it is trained on, and a tag (may be empty) to measure accuracy by.

    Control tokens in the text are tokenized as such.
    """

    text: str
    trained: bool
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """One supervised example: raw ``spans``, or a conversation (``messages``).

    A conversation is written with the chat template, and only ``assistant`` turns are trained on, with their end token.
    ``template`` has options of the chat template if they differ from the stage's. ``trained`` says for each message
    whether it is trained on (empty: all ``assistant`` ones). ``tag`` is the tag of all its tokens. ``where`` names it
    in errors: file, row and column.
    """

    spans: tuple[Span, ...] = ()
    messages: tuple[ChatMessage, ...] = ()
    tag: str = ""
    template: Mapping[str, Any] | None = None
    trained: tuple[bool, ...] = ()
    where: str = ""


class DocumentSource(Protocol):
    """Supervised documents by number from 0. ``size`` is None for an endless source. ``level`` in [0, 1] is the
    difficulty, for sources that have a curriculum.
    """

    @property
    def size(self) -> int | None: ...

    def document(self, number: int, level: float) -> Document:
        """Document ``number`` at difficulty ``level``, always the same one. Raises DataError."""
