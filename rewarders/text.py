"""Where the answer stands in a response: scans of linear time that hostile text cannot slow down or mislead."""

from __future__ import annotations

import unicodedata

MAX_BOX = 1024
MAX_DEPTH = 24
OPEN, CLOSE = "<answer>", "</answer>"


def after_thinking(text: str) -> str:
    """What follows the last ``</think>``; an answer inside the thinking is none."""
    head, tag, tail = text.rpartition("</think>")
    return tail if tag else ("" if "<think>" in head + tail else text)


def answer_span(text: str) -> str | None:
    """What the answer tags hold; the whole text where there are none; None unless there is exactly one pair."""
    opens, closes = text.count(OPEN), text.count(CLOSE)
    if opens == closes == 0:
        return text
    start, end = text.find(OPEN), text.find(CLOSE)
    return text[start + len(OPEN) : end] if opens == closes == 1 and start < end else None


def last_box(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` whose braces balance; None if there is none, or it is too long or deep."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for at in range(begin, min(len(text), begin + MAX_BOX + 1)):
        character = text[at]
        if character == "{":
            depth += 1
            if depth > MAX_DEPTH:
                return None
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[begin:at]
    return None


def is_clean(text: str) -> bool:
    """Whether ``text`` is free of control and direction-changing characters, which make it read as something else."""
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") and c not in "\n\t" for c in text)
