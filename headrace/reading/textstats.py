"""The words of a window of steps added up: reflective words, scripts, language consistency (see ``monitoring/writing.py``)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from monitoring.report import TextWindow
from monitoring.writing import WORDS, reflective_words, scripts


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
