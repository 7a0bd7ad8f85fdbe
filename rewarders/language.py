"""Language consistency: the share of the words of the target language in the chain of thought (R1, arXiv 2501.12948,
equation 5).

Only natural language counts: code, formulas, numbers, tags, addresses, acronyms, identifiers, single Latin or Greek
letters and terms that every language uses are ignored. A word belongs to the target language if its script does. Where
other languages share that script, a detector decides sentence by sentence, and a sentence counts as foreign only if the
detector is sure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from broker.errors import MessageError
from broker.messages import Trajectory
from broker.spelling import nearest
from monitoring.writing import SCRIPTS, prose, script_words, scripts
from rewarders.detector import Detector, languages_of, scripts_of
from rewarders.parts import part
from rewarders.rewarder import Reward

_TERMS = """
sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lim max min sup inf arg argmax argmin gcd lcm mod det dim ker rank tr
iff qed lhs rhs wlog bfs dfs dp cm mm km kg mg ml mol hz khz mhz kj kw rad deg pi phi theta alpha beta gamma delta lambda sigma omega vs etc
api cpu gpu ram sql html css json xml url http https python java javascript rust numpy pandas pytorch linux unix windows
stdin stdout print def int float str bool list dict len null none true false
"""
TERMS = frozenset(_TERMS.split())
"""Words of mathematics and programming that belong to no language."""
_IDENTIFIER = re.compile(
    r"\b(?=\w*[\d_])\w+\b|\b\w{1,40}(?:\.\w{1,40}){0,6}\(\)|\b[a-z]+(?:[A-Z][a-z0-9]+)+\b|\b[A-Z]{2,6}s?\b", re.ASCII
)
_SENTENCE = re.compile(r"[.!?。！？;；:：\n]+")
JOINED = 3  # a sentence with fewer words is judged together with the next one
UNJUDGED = 2  # so few words are too short for a detector


@dataclass(frozen=True)
class LanguageConsistency:
    """Words of the target language / words, in [0, 1].

    The target is ``language`` (a code such as ``en``, or a script such as ``Cyrillic``), else ``metadata[column]`` of
    the sample, else the language of the question; abstains if that is unknown. ``among`` are the languages to tell
    apart (default: the common ones of the script). ``sees`` is the part to judge. ``terms`` are further words that do
    not count. ``wordless`` is the value of a thought without any word. With ``by_script`` languages of one script count
    as one, and no detector is used. The detector's models (about 25 MB and a fifth of a second a language) are loaded
    at the start: those of ``language`` or ``among``, else of the common languages in Latin script; others when they are
    needed.
    """

    language: str = ""
    column: str = "language"
    sees: str = "thought"
    among: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    wordless: float = 0.0
    by_script: bool = False
    _detectors: dict[Any, Detector] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        part(self.sees)
        if self.language and not scripts_of(self.language):
            known = [*languages_of(), *SCRIPTS]
            raise MessageError(
                f"language = {self.language!r}; it must be a code such as 'en', or a script{nearest(self.language, known)}"
            )

        if not self.by_script:
            self._load()

    def _load(self) -> None:
        """Load the models that are known to be needed, so that no sample waits for them."""
        for code in (self.language,) if self.language else self.among or ("en",):
            if code not in SCRIPTS and len(rivals := self._rivals(code)) > 1:
                self._detector(rivals).best("x")

    def __call__(self, sample: Trajectory) -> Reward | None:
        target = self.target(sample)
        if not target:
            return None
        own, words = self.count(part(self.sees)(sample.text, ""), target)
        if not words:
            return Reward(self.wordless, "no words")
        return Reward(own / words, f"{own} of {words} words are {target}")

    def target(self, sample: Trajectory) -> str:
        """The language that the sample should be in; empty if unknown."""
        told = self.language or sample.metadata.get(self.column)
        if isinstance(told, str) and scripts_of(told):
            return told
        asked = [m.content for m in sample.messages if m.role == "user"]
        return self.spoken(prose(asked[-1])) if asked else ""

    def spoken(self, text: str) -> str:
        """The language (with ``by_script`` the script) that most of ``text`` is in; empty if it has no words or no known one."""
        found = scripts(text)
        if not found:
            return ""
        script = "Kana" if found["Kana"] * 10 > found.total() else max(found, key=lambda s: found[s])
        candidates = self._candidates(script)
        if self.by_script or not candidates:
            return script if script != "other" else ""
        if len(candidates) == 1:
            return candidates[0]
        return self._detector(candidates).best(text)

    def count(self, text: str, target: str) -> tuple[int, int]:
        """The words of ``text`` that are of the ``target`` language, and all its words."""
        own, words = 0, 0
        scripts_of_target = scripts_of(target)
        text = _IDENTIFIER.sub(" ", prose(text))
        ignored = TERMS.union(map(str.lower, self.terms))
        for sentence in _sentences(text):
            spoken = [(s, w) for s, w in script_words(sentence) if not _is_sign(s, w) and w.lower() not in ignored]
            of_script = [w for s, w in spoken if s in scripts_of_target]
            words += len(spoken)
            if of_script and self._is(target, sentence, of_script):
                own += len(of_script)
        return own, words

    def _is(self, target: str, sentence: str, words: list[str]) -> bool:
        """Whether the words of the target's script in ``sentence`` are in its language; True in case of doubt."""
        if self.by_script or target in SCRIPTS or len(words) < UNJUDGED:
            return True
        rivals = self._rivals(target)
        glue = "" if scripts_of(target) & {"Han", "Kana", "Thai"} else " "
        return len(rivals) == 1 or not self._detector(rivals).excludes(target, glue.join(words))

    def _rivals(self, target: str) -> list[str]:
        """The languages that ``target`` has to be distinguished from, and itself."""
        return sorted({c for script in scripts_of(target) for c in self._candidates(script)} | {target})

    def _candidates(self, script: str) -> list[str]:
        return [c for c in (self.among or languages_of(script)) if script in scripts_of(c)]

    def _detector(self, candidates: list[str]) -> Detector:
        key = tuple(candidates)
        if key not in self._detectors:
            self._detectors[key] = Detector(key)
        return self._detectors[key]


def _is_sign(script: str, word: str) -> bool:
    """A letter that stands for a number, an angle or a function."""
    return len(word) == 1 and script in ("Latin", "Greek")


def _sentences(text: str) -> list[str]:
    """The sentences of ``text``; one of very few words is joined with the next."""
    found: list[str] = []
    waiting: list[str] = []
    words = 0
    for piece in _SENTENCE.split(text):
        waiting.append(piece)
        words += len(script_words(piece))
        if words >= JOINED:
            found.append(" ".join(waiting))
            waiting, words = [], 0
    return [*found, " ".join(waiting)] if words else found
