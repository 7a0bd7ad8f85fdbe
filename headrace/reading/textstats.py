"""How responses are written: the reflective words of DeepSeek-R1 (arXiv 2501.12948), scripts, and language consistency.

A response is looked at up to ``CHARACTERS``; scripts that put no space between words count each character as a word.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from monitoring.report import TextWindow

WORDS = ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check")
CHARACTERS = 20_000
SCRIPTS = {
    "Latin": "[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u1e00-\u1eff]+",
    "Han": "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]",
    "Kana": "[\u3041-\u3096\u30a1-\u30fa]",
    "Hangul": "[\u1100-\u11ff\uac00-\ud7a3]+",
    "Cyrillic": "[\u0400-\u052f]+",
    "Arabic": "[\u0620-\u064a\u0671-\u06d3\u06fa-\u06ff]+",
    "Devanagari": "[\u0900-\u0963]+",
    "Hebrew": "[\u05d0-\u05ea]+",
    "Greek": "[\u0370-\u03ff\u1f00-\u1fff]+",
    "Thai": "[\u0e01-\u0e3a\u0e40-\u0e4e]",
    "other": r"[^\W\d_]",
}
_REFLECTIVE = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
_SCRIPT = re.compile("|".join(f"(?P<{name}>{letters})" for name, letters in SCRIPTS.items()))


def reflective_words(text: str) -> set[str]:
    """Which of ``WORDS`` stand in ``text``, whatever their case."""
    return {word.lower() for word in _REFLECTIVE.findall(text[:CHARACTERS])}


def scripts(text: str) -> Counter[str]:
    """The number of words of each script."""
    return Counter(found.lastgroup or "" for found in _SCRIPT.finditer(text[:CHARACTERS]))


@dataclass(slots=True)
class Window:
    """Adds up the samples of some steps."""

    first: int
    last: int
    samples: int = 0
    cut: int = 0
    read: int = 0
    reflective: int = 0
    words: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    spoken: int = 0
    consistency: float = 0.0

    def count(self, finish_reason: str) -> None:
        """A sample was trained."""
        self.samples += 1
        self.cut += finish_reason == "length"

    def look_into(self, text: str) -> None:
        """Count the words of a response."""
        found, spoken = reflective_words(text), scripts(text)
        self.read += 1
        self.reflective += bool(found)
        self.words.update(found)
        self.scripts.update(spoken)
        if spoken:
            self.spoken += 1
            self.consistency += max(spoken.values()) / spoken.total()

    def shares(self) -> TextWindow:
        read, total = self.read or 1, self.scripts.total() or 1
        return TextWindow(
            self.first,
            self.last,
            self.samples,
            self.read,
            self.reflective / read,
            {word: self.words[word] / read for word in WORDS},
            {name: count / total for name, count in self.scripts.items()},
            self.consistency / self.spoken if self.spoken else float("nan"),
            self.cut / (self.samples or 1),
        )
