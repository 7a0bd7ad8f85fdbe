"""The parts of a response that a rewarder may look at: its thought, its final summary, or all of it."""

from __future__ import annotations

from collections.abc import Callable

from broker.errors import MessageError
from broker.spelling import nearest
from rewarders.text import after_thinking, answer_span


def response(text: str, mark: str = "") -> str:
    """The whole text."""
    return text


def thought(text: str, mark: str = "") -> str:
    """The text before the last ``</think>`` (or between the first two ``mark``), without the tag that opened it; a text without thinking is all thought."""
    if mark:
        head, _, rest = text.partition(mark)
        return rest.partition(mark)[0] if not head.strip() else head
    head, tag, tail = text.rpartition("</think>")
    return (head if tag else tail).strip().removeprefix("<think>")


def summary(text: str, mark: str = "") -> str:
    """The text after the thought (after the last ``mark``, if one is given), without its answer tags.

    Empty if the thought is unfinished.
    """
    if mark:
        return text.rpartition(mark)[2].strip() if text.count(mark) >= 2 else ""
    rest = after_thinking(text)
    inner = answer_span(rest)
    return (rest if inner is None else inner).strip()


PARTS: dict[str, Callable[[str, str], str]] = {"response": response, "thought": thought, "summary": summary}


def part(name: str) -> Callable[[str, str], str]:
    """The function that cuts the part ``name`` out of a text and its mark. Raises MessageError."""
    if name not in PARTS:
        raise MessageError(f"sees = {name!r}; it must be one of {', '.join(PARTS)}{nearest(name, list(PARTS))}")
    return PARTS[name]
