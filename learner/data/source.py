"""The protocols of data sources. Rows are addressed by number, so that a resumed run continues exactly where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from broker.errors import DataError, MessageError
from broker.messages import ChatMessage, Prompt, encode
from broker.wire import Json

STALE_ROW = "before_cutoff"
"""The metadata of a row that was published before the model's cut-off, where such rows are marked (``[data.NAME] fresh = "mark"``)."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One question: the conversation so far, and what a rewarder needs to judge an answer to it."""

    messages: tuple[ChatMessage, ...]
    answer: str | None = None
    kind: str = ""
    metadata: Mapping[str, Json] = field(default_factory=dict)


class PromptSource(Protocol):
    """Questions by row number. ``size`` is None for a synthetic source without end."""

    @property
    def size(self) -> int | None: ...

    def row(self, number: int) -> PromptRow:
        """Row ``number`` (below ``size``), always the same one. Raises DataError that names the row and what is wrong."""


def row_of(source: PromptSource, number: int) -> PromptRow:
    """Row ``number``, checked to fit into the log. Raises DataError for whatever is wrong with it: a source is anybody's code."""
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
    """What is wrong with the row at ``where``, by what its source raised: a DataError names the row itself."""
    return str(error) if isinstance(error, DataError) else f"{where}: {type(error).__name__}: {str(error)[:300]}"


def _named(source: PromptSource, number: int) -> str:
    where = getattr(source, "where", "")
    return f"{where} row {number}" if where else f"row {number}"


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a document: its text, whether it is trained on, and a tag by which accuracy is counted (may be empty).

    The text is written with the tokenizer's control tokens recognised.
    """

    text: str
    trained: bool
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """One supervised example: raw spans, or a conversation whose last message (the reply) is trained on.

    With ``messages`` the chat template is applied and only ``assistant`` turns are trained, end token included. ``template`` are options of
    the chat template, where they are not those of the stage. ``trained`` says of each message whether it is trained on (empty: all
    ``assistant`` ones). ``where`` is how errors name it: file, row and column.
    """

    spans: tuple[Span, ...] = ()
    messages: tuple[ChatMessage, ...] = ()
    tag: str = ""
    template: Mapping[str, Any] | None = None
    trained: tuple[bool, ...] = ()
    where: str = ""


class DocumentSource(Protocol):
    """Supervised documents by number. ``level`` in [0, 1] asks a source with a curriculum for easier or harder ones."""

    @property
    def size(self) -> int | None: ...

    def document(self, number: int, level: float) -> Document:
        """Document ``number`` at difficulty ``level``, always the same one. Raises DataError."""
