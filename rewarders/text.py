"""Finds the answer in a response, by scans in linear time that hostile text cannot slow down or mislead."""

from __future__ import annotations

import re
import unicodedata

MAX_BOX = 1024
MAX_DEPTH = 24
MAX_BOXES = 16
MAX_PLAIN = 1024
OPEN, CLOSE = "<answer>", "</answer>"
THOUGHT = re.compile(r"<\s{0,4}(/?)\s{0,4}think\s{0,4}>", re.IGNORECASE)
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
HASHES = "####"


def after_thinking(text: str) -> str:
    """The text after the last ``</think>``, if no thought is open there: an answer inside a thought does not count."""
    said = spoken(text)
    return said[-1] if said else ""


def spoken(text: str) -> list[str]:
    """The parts of the text outside of thoughts, in order; empty if it ends within a thought.

    A ``</think>`` that nothing opened ends a thought that the prompt opened.
    """
    parts: list[str] = []
    at, inside = 0, False
    for tag in THOUGHT.finditer(text):
        closes = bool(tag.group(1))
        if not inside and (not closes or parts):
            parts.append(text[at : tag.start()])
        elif closes and not parts:
            parts = [""]
        inside, at = not closes, tag.end()
    return [] if inside else [*parts, text[at:]]


def answer_span(text: str) -> str | None:
    """The text between the answer tags; the whole text if there are no tags; None if there is not exactly one pair."""
    opens, closes = text.count(OPEN), text.count(CLOSE)
    if opens == closes == 0:
        return text
    start, end = text.find(OPEN), text.find(CLOSE)
    return text[start + len(OPEN) : end] if opens == closes == 1 and start < end else None


def final_answers(text: str, boxed: bool = True, all_parts: bool = True) -> list[str]:
    r"""What the response gives as its final answer: what each box holds, else (unless ``boxed``) one short text; none if it gives none.

    The text after the last thought counts, or the one pair of answer tags in it; with ``all_parts`` the boxes between earlier thoughts too.
    """
    parts = spoken(text)
    span = answer_span(parts[-1]) if parts else None
    held = boxes(span) if span is not None else None
    if span is None or held is None:
        return []
    if held:
        earlier = [box for part in parts[:-1] for box in boxes(part) or []] if all_parts else []
        return [*earlier, *held]
    if boxed:
        return []
    plain = span.rpartition(HASHES)[2].strip()
    return [plain] if plain and plain.count("\n") <= 3 and len(plain) <= MAX_PLAIN else []


def boxes(text: str) -> list[str] | None:
    r"""What the ``\boxed`` hold, in order, those inside others left out; None if one is too long, too deep or too many.

    ``\boxed{5}``, ``\boxed {5}`` and ``\boxed 5`` are boxes. One whose braces never close is none, and ends the list.
    """
    found: list[str] = []
    end = 0
    for box in BOX.finditer(text):
        if box.start() < end:
            continue
        if len(found) == MAX_BOXES:
            return None
        at = box.end()
        while at < len(text) and at - box.end() < 8 and text[at] in " \t\n":
            at += 1
        if text[at : at + 1] != "{":
            bare = re.compile(r"-?\d[\d.,/]{0,30}|\w").match(text, at)
            if bare:
                found.append(bare.group().rstrip(".,"))
                end = bare.end()
            continue
        held = balanced(text, at)
        if held is None:
            return found if text.find("}", at) < 0 else None
        found.append(held)
        end = at + len(held) + 2
    return found


def balanced(text: str, at: int) -> str | None:
    """What the braces that open at ``at`` hold; None if they do not close within ``MAX_BOX``, or are nested too deep."""
    depth, escaped = 0, False
    for place in range(at, min(len(text), at + MAX_BOX + 2)):
        character = text[place]
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            depth += 1
            if depth > MAX_DEPTH:
                return None
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[at + 1 : place]
    return None


def last_box(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` whose braces balance; None if there is none, or it is too long or deep."""
    start = text.rfind("\\boxed")
    if start < 0:
        return None
    found = boxes(text[start:])
    return found[0] if found else None


def is_clean(text: str) -> bool:
    """Whether ``text`` is free of control and direction-changing characters, which make it read as something else."""
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") and c not in "\n\t" for c in text)
