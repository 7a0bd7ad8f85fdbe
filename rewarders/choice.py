"""Rule reward for multiple choice: does the final answer name the right option, by its letter or by its text, and no other?"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from broker.errors import RunFileError
from broker.messages import Trajectory
from rewarders.answers import words
from rewarders.answers.compare import Rules
from rewarders.answers.judge import judge
from rewarders.answers.readings import UnreadableReference, read
from rewarders.answers.surface import INVISIBLE, normal
from rewarders.rewarder import Reward
from rewarders.text import after_thinking, answer_span, final_answers, is_clean

LETTERS = string.ascii_uppercase
UNKNOWN = 10
"""How many letters are options where the options themselves are not known: A to J."""
MAX_TEXT = 1024
MAX_QUESTION = 32_768
KEYS = ("options", "choices")
LINE = re.compile(r"^[ \t]*(?:[-*][ \t]+)?[(\[]?([A-Z])[)\].:][ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
INLINE = re.compile(r"\(([A-Z])\)[ \t]*([^()\n]+?)(?=[ \t,;]*(?:\([A-Z]\)|\n|$))")
LEAD = re.compile(
    r"(?:(?:the|my|final|correct|best|answer|option|choice)\s+)*(?:(?:answer|option|choice)\s*)?(?:is|:|=)?\s*(?:(?:option|choice)\s+)?",
    re.IGNORECASE,
)
LIST = re.compile(
    r"[(\[]?([A-Za-z])[)\]]?[.:]?(?:(?:\s*(?:,|;|/|&|and|or|\\land|\\lor))+\s*[(\[]?([A-Za-z])[)\]]?[.:]?)*\s*"
)
ITEM = re.compile(r"(?<![A-Za-z\\])[(\[]?([A-Za-z])[)\]]?(?![A-Za-z])")
MARKED = re.compile(r"[(\[]?([A-Za-z])(?:[)\]][.:]?|[.:]|\s+-)\s*(\S.*)", re.DOTALL)
OTHER = re.compile(r"(?<![A-Za-z\\])(?:[(\[]([A-Z])[)\]]|([A-Z])[).:]|(?:option|choice|or|and)\s+\(?([A-Z])\b)")


@dataclass(frozen=True)
class Choice:
    r"""1 if the final answer names the option that ``sample.answer`` is, and no other; else 0. Abstains without a reference.

    The reference is a letter, several (``A, C``: all of them and no others), or the text of an option. The options are those of
    ``metadata`` under ``key`` (by default ``options`` or ``choices``: a list, a table letter -> text, or ``{"label": [...], "text": [...]}``),
    or lines ``A) ...`` and ``(A) ...`` of the last user message. ``boxed``: only a ``\boxed{}`` counts; otherwise a short text in answer tags or
    the last line does too. Raises UnreadableReference for a reference that is none of the options.
    """

    bounded: ClassVar[bool] = True
    boxed: bool = True
    key: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.key, str):
            raise RunFileError(f"key = {self.key!r} must be the name of a metadata field")

    def __call__(self, sample: Trajectory) -> Reward | None:
        if sample.answer is None:
            return None
        options = self.options(sample)
        right = reference(sample.answer, options)
        found = self.found(sample.text)
        if not found:
            return Reward(0.0, "no final answer")
        picks = {named(text, options) for text in found}
        if len(picks) > 1:
            return Reward(0.0, f"{len(found)} answers that differ")
        pick = picks.pop()
        shown = ", ".join(sorted(pick))
        if not pick:
            return Reward(
                0.0, f"{found[-1][:60]!r} names no single option", words.folded(normal(found[-1][:MAX_TEXT]))[:100]
            )
        return Reward(
            float(pick == right), f"{shown} {'is' if pick == right else 'is not'} {', '.join(sorted(right))}", shown
        )

    def found(self, text: str) -> list[str]:
        """What each box holds, or else the last line outside of thoughts."""
        found = final_answers(text, self.boxed)
        if self.boxed or (found and "\\boxed" in text):
            return found
        said = answer_span(after_thinking(text))
        return (said or "").strip().splitlines()[-1:]

    def options(self, sample: Trajectory) -> dict[str, str]:
        """The text of each option by its letter; empty if the options are not known."""
        for key in (self.key,) if self.key else KEYS:
            given = sample.metadata.get(key)
            if given:
                return table(given)
        asked = next((m.content for m in reversed(sample.messages) if m.role == "user"), "")
        return parsed(asked)


def table(given: Any) -> dict[str, str]:
    """Options as data sets carry them."""
    if isinstance(given, Mapping) and isinstance(given.get("text"), Sequence) and not isinstance(given["text"], str):
        labels = given.get("label") or LETTERS
        return {letter: str(text) for letter, text in zip(LETTERS, given["text"], strict=False)} if labels else {}
    if isinstance(given, Mapping):
        return {str(letter).strip(" ().").upper(): str(text) for letter, text in given.items()}
    if isinstance(given, Sequence) and not isinstance(given, str):
        return {letter: unlettered(str(text), letter) for letter, text in zip(LETTERS, given, strict=False)}
    return {}


def unlettered(text: str, letter: str) -> str:
    """``A) 12`` as ``12``, for options whose letter is already known."""
    found = MARKED.fullmatch(text.strip())
    return found.group(2) if found and found.group(1) == letter else text


def parsed(question: str) -> dict[str, str]:
    """The options that a question lists: the last run of A, B, C ... in lines, or between brackets in one line."""
    question = question[-MAX_QUESTION:]
    for form in (LINE, INLINE):
        run: dict[str, str] = {}
        for letter, text in form.findall(question):
            if letter == "A":
                run = {}
            if letter == LETTERS[len(run)] if len(run) < 26 else False:
                run[letter] = text.strip(" \t,;")
        if len(run) >= 2:
            return run
    return {}


def reference(text: str, options: Mapping[str, str]) -> frozenset[str]:
    """The letters of the reference. Raises UnreadableReference."""
    right = named(text, options)
    if not right:
        raise UnreadableReference(
            f"the reference {text[:200]!r} names none of the options {', '.join(options) or 'A to J'}; correct the data set's answer or options"
        )
    return right


def named(text: str, options: Mapping[str, str]) -> frozenset[str]:
    """The letters of the options that a final answer names; empty where it names none, or is ambiguous."""
    text = text.translate(INVISIBLE)
    if len(text) > MAX_TEXT or not is_clean(text):
        return frozenset()
    plain = words.without_wrappers(normal(text)).strip()
    letters = set(options) or set(LETTERS[:UNKNOWN])
    by_text = {letter for letter, option in options.items() if same_text(plain, option)}
    single = ITEM.fullmatch(plain)
    if len(by_text) == 1 and not (single and single.group(1).upper() in letters):
        return frozenset(by_text)
    rest = plain[LEAD.match(plain).end() :].strip()  # type: ignore[union-attr]
    if LIST.fullmatch(rest):
        found = {letter.upper() for letter in ITEM.findall(rest)}
        return frozenset(found) if found <= letters else frozenset()
    marked = MARKED.fullmatch(rest)
    if marked and marked.group(1).upper() in letters:
        return _explained(marked.group(1).upper(), marked.group(2), options)
    letter, _, behind = rest.partition(" ")
    if letter in options and same_text(behind, options[letter]):
        return frozenset(letter)
    return frozenset()


def _explained(letter: str, behind: str, options: Mapping[str, str]) -> frozenset[str]:
    """``C) 12``: the letter, unless what follows it names another option."""
    others = {next(filter(None, found)) for found in OTHER.findall(behind)} - {letter}
    contradicts = any(other != letter and same_text(behind, text) for other, text in options.items())
    same = letter in options and same_text(behind, options[letter])
    return frozenset(letter) if same or not (others or contradicts) else frozenset()


def same_text(answer: str, option: str) -> bool:
    """Whether an answer is the text of an option: as words, or as a value."""
    if not answer or len(option) > MAX_TEXT:
        return False
    if words.folded(answer) == words.folded(normal(option)):
        return True
    return bool(judge(read(answer), read(option), Rules(), "optional").right)
