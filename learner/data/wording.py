"""The text of a row in forms that can be compared: its question without case and spacing, and its words."""

from __future__ import annotations

import re

from learner.data.source import Document, PromptRow

_WORD = re.compile(r"\w+")
_TERM = re.compile(r"\w+|[^\w\s]")


def question_of(row: PromptRow | Document) -> str:
    """The question of a row, in lower case and with single spaces.

    Of a prompt it is all messages but the system's, of a conversation the user's, of a plain document its whole text.
    """
    if isinstance(row, PromptRow):
        text = "\n".join(m.content for m in row.messages if m.role != "system")
    elif row.messages:
        text = "\n".join(m.content for m in row.messages if m.role == "user")
    else:
        text = "\n".join(span.text for span in row.spans)
    return " ".join(text.casefold().split())


def text_of(row: PromptRow | Document) -> str:
    """The whole text that a row would teach: its messages without the system's, or its spans."""
    if isinstance(row, Document) and not row.messages:
        return "\n".join(span.text for span in row.spans)
    return "\n".join(m.content for m in row.messages if m.role != "system")


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def terms_of(text: str) -> str:
    """Words and signs, separated by single spaces: ``1+2`` and ``1 + 2`` give the same, ``1-2`` does not."""
    return " ".join(_TERM.findall(text.casefold()))
