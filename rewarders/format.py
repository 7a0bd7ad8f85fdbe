"""The form reward of R1-Zero: the whole response is one thought and one answer in their tags.

Source: arXiv 2501.12948, table 1.

Also the form of the cold start: a thought followed by a summary for the reader (section 2.3.1 there). Only the exact
tags count. A response fails if it contains look-alikes of the tags, markers of a chat template, or a part that shows a
reader nothing.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass

from broker.errors import MessageError
from broker.messages import Trajectory
from broker.spelling import nearest
from rewarders.rewarder import Reward
from rewarders.text import last_box
from rewarders.visible import has_content, has_words

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
THINK = TAGS[:2]
_FOLD = str.maketrans(
    "‹〈《⟨⟪〈﹤ᐸ˂›〉》⟩⟫〉﹥ᐳ˃∕⁄⧸" + "аеһікѕтԝѡոɑοі",
    "<<<<<<<<<>>>>>>>>>///" + "aehikstwwnaoi",
)
"""Brackets, strokes and letters that look like those of the tags."""
_ENTITY = re.compile(r"&#?\w{1,12};")
_LIKE_TAG = re.compile(r"<\s{0,9}/?\s{0,9}(?:think|thinking|answer)(?![a-z])[^<>]{0,40}>")
_MARKER = re.compile(r"<\|[^<>|]{1,60}\|>|\[/?inst\]|<</?sys>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>")


@dataclass(frozen=True)
class Format:
    """1 if the response has exactly the required form, else 0.

    ``pattern``: ``tags`` is ``<think>...</think><answer>...</answer>``, ``think`` is ``<think>...</think>`` and a summary behind it,
    ``readable`` is the thought between two ``mark`` and a summary behind them. ``boxed``: the answer holds a ``\\boxed{}`` with
    something in it. ``opened``: the text may begin inside the thought, as it does where the chat template opens the thought and the
    actor does not say so. Raises MessageError for an unknown pattern or an empty mark.
    """

    boxed: bool = False
    pattern: str = "tags"
    opened: bool = False
    mark: str = "|special_token|"

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise MessageError(
                f"pattern = {self.pattern!r}; it must be one of {', '.join(PATTERNS)}{nearest(self.pattern, list(PATTERNS))}"
            )
        if not self.mark.strip():
            raise MessageError("mark = ''; it must be the text that stands before and behind the thought")

    def __call__(self, sample: Trajectory) -> Reward | None:
        if sample.finish_reason != "stop":
            return Reward(0.0, "not finished")
        fault = self.fault(sample.text)
        return Reward(0.0 if fault else 1.0, fault)

    def fault(self, text: str) -> str:
        """What is wrong with the form of ``text``; empty if nothing is. Linear in its length."""
        text = text.strip()
        marks = PATTERNS[self.pattern] or (self.mark, self.mark)
        if self.opened and not text.startswith(marks[0]):
            text = marks[0] + text
        for mark in dict.fromkeys(marks):
            if text.count(mark) != marks.count(mark):
                return f"{text.count(mark)} times {mark}"
        if foreign := _look_alike(text, marks):
            return f"{foreign} is no tag"
        pieces = _cut(text, marks)
        if pieces is None or pieces[0].strip() or (len(marks) == 4 and pieces[4].strip()):
            return "text outside of the tags"
        if len(marks) == 4 and pieces[2].strip():
            return "text between thought and answer"
        answer = pieces[3] if len(marks) == 4 else pieces[2]
        if not has_words(pieces[1]):
            return "an empty thought"
        if not has_content(answer):
            return "an empty answer"
        if self.boxed and not has_content(last_box(answer) or ""):
            return "no boxed answer"
        return ""


PATTERNS: dict[str, tuple[str, ...]] = {"tags": TAGS, "think": THINK, "readable": ()}


def _cut(text: str, marks: tuple[str, ...]) -> list[str] | None:
    """The text before, between and after the marks; None if they are not in this order."""
    pieces = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found:
            return None
        pieces.append(piece)
    return [*pieces, text]


def _look_alike(text: str, marks: tuple[str, ...]) -> str:
    """The first stretch of ``text`` beside the ``marks`` that reads as a tag or as a marker of a chat template."""
    for mark in marks:
        text = text.replace(mark, "\n")
    text = unicodedata.normalize("NFKC", _ENTITY.sub(lambda found: html.unescape(found[0]), text)).casefold()
    text = "".join(
        c for c in text.translate(_FOLD) if unicodedata.category(c) not in ("Cf", "Mn", "Cc") or c in "\n\t "
    )
    found = _LIKE_TAG.search(text) or _MARKER.search(text)
    return found[0][:40] if found else ""
