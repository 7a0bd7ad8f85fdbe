"""Finds the program in a response, or applies its patch to a given program. Nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rewarders.text import after_thinking, answer_span

FENCE = re.compile(r" {0,3}(`{3,}(?!`)|~{3,}(?!~))[ \t]*(?![ \t])([^\s`]*)(?:\s[^`]*)?")
HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@.*")
MAX_PROGRAM = 1 << 18
SEARCH, DIVIDER, REPLACE = "<<<<<<<", "=======", ">>>>>>>"


class NoPatch(ValueError):
    """A patch that does not apply; the text says why."""


@dataclass(frozen=True, slots=True)
class Block:
    """A closed fenced block: its tag in lower case, and its content."""

    tag: str
    text: str


def program_of(response: str, tags: Sequence[str], others: Sequence[str] = ()) -> str | None:
    """The program in a response, after its thought; None if there is none, or it has more than MAX_PROGRAM characters.

    It is the last fenced block with one of ``tags``; if there is none, the last without a tag; else the last whose tag
    is not one of ``others``. Without any fenced block, the whole of an ``<answer>`` is the program.
    """
    tail = after_thinking(response)
    answer = answer_span(tail)
    text = tail if answer is None else answer
    found = list(blocks(text))
    for wanted in (set(tags), {""}):
        for block in reversed(found):
            if block.tag in wanted:
                return _bounded(block.text)
    for block in reversed(found):
        if block.tag not in others:
            return _bounded(block.text)
    return _bounded(text) if answer is not None and answer is not tail and not found and answer.strip() else None


def _bounded(text: str) -> str | None:
    return text if text.strip() and len(text) <= MAX_PROGRAM else None


def blocks(text: str) -> Iterator[Block]:
    """All closed fenced blocks, in order. A fence of the same sign, at least as long and without a tag, ends one."""
    fence, tag = "", ""
    held: list[str] = []
    for line in text.split("\n"):
        match = FENCE.fullmatch(line.rstrip())
        if not fence:
            if match:
                fence, tag, held = match[1], match[2].lower().strip("{}."), []
        elif match and match[1][0] == fence[0] and len(match[1]) >= len(fence) and not match[2]:
            yield Block(tag, "\n".join(held) + "\n")
            fence = ""
        else:
            held.append(line)


def patched(program: str, response: str, tags: Sequence[str], others: Sequence[str] = ()) -> str | None:
    """``program`` with the change that the response gives: search/replace blocks, a unified diff, or a whole new file.

    None if the response gives no change. Raises NoPatch if the change does not apply.
    """
    tail = after_thinking(response)
    found = list(blocks(tail))
    texts = [b.text for b in found] or [tail]
    changes = [t for t in texts if SEARCH in t and REPLACE in t]
    if changes:
        for change in changes:
            program = replaced(program, change)
        return program
    for block in reversed(found):
        if block.tag in ("diff", "patch") or any(HUNK.match(line) for line in block.text.split("\n")):
            return with_diff(program, block.text)
    return program_of(response, tags, (*others, "diff", "patch"))


def replaced(program: str, change: str) -> str:
    """``program`` with each ``<<<<<<< SEARCH``, text, ``=======``, text, ``>>>>>>> REPLACE`` applied in order.

    Raises NoPatch unless each text to search for occurs exactly once.
    """
    part = ""
    sought: list[str] = []
    given: list[str] = []
    for line in change.split("\n"):
        if not part and line.startswith(SEARCH):
            part, sought, given = "search", [], []
        elif part == "search" and line.startswith(DIVIDER):
            part = "replace"
        elif part == "replace" and line.startswith(REPLACE):
            program = _once(program, sought, given)
            part = ""
        elif part:
            (sought if part == "search" else given).append(line)
    if part:
        raise NoPatch("a search/replace block has no end")
    return program


def _once(program: str, sought: list[str], given: list[str]) -> str:
    if not any(line.strip() for line in sought):
        raise NoPatch("a search block is empty")
    lines = program.removesuffix("\n").split("\n")
    places = _places(lines, sought, 0)
    if len(places) != 1:
        raise NoPatch(f"a search block is found {len(places)} times: {sought[0][:60]!r}")
    lines[places[0] : places[0] + len(sought)] = given
    return "\n".join(lines) + "\n"


def _places(lines: list[str], sought: list[str], start: int) -> list[int]:
    return [p for p in range(start, len(lines) - len(sought) + 1) if lines[p : p + len(sought)] == sought]


def with_diff(program: str, diff: str) -> str:
    """``program`` with the hunks of a unified diff applied in order.

    Each applies where its old lines occur nearest to its line number. Raises NoPatch if they do not occur, or if there
    is no hunk.
    """
    lines, at, shift, hunks = program.split("\n"), 0, 0, 0
    for start, old, new in _hunks(diff):
        places = _places(lines, old, at)
        if not places:
            raise NoPatch(f"hunk {hunks + 1} does not fit: {(old or [''])[0][:60]!r}")
        place = min(places, key=lambda p: abs(p - (start - 1 + shift)))
        lines[place : place + len(old)] = new
        at, shift, hunks = place + len(new), shift + len(new) - len(old), hunks + 1
    if not hunks:
        raise NoPatch("the diff has no hunk")
    return "\n".join(lines)


def _hunks(diff: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """Line number, old lines and new lines of each hunk. The line counts in its header are not trusted."""
    start, inside = 0, False
    old: list[str] = []
    new: list[str] = []
    for line in diff.rstrip("\n").split("\n"):
        head = HUNK.fullmatch(line)
        if head:
            if inside:
                yield start, old, new
            start, old, new, inside = int(head[1]), [], [], True
        elif inside and line.startswith(("--- ", "diff ")):
            yield start, old, new
            inside = False
        elif inside and line[:1] in (" ", "-", "+", ""):
            if line[:1] != "+":
                old.append(line[1:])
            if line[:1] != "-":
                new.append(line[1:])
    if inside:
        yield start, old, new
