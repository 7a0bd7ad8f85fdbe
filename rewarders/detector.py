"""Distinguishes languages that share a script with lingua's n-gram models, which are loaded on first use (about 25 MB
per language).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from broker.errors import RunFileError
from monitoring.writing import SCRIPTS

LANGUAGES: dict[str, frozenset[str]] = {
    **dict.fromkeys(["en", "de", "fr", "es", "it", "pt", "nl", "pl", "sv", "tr", "vi", "id"], frozenset({"Latin"})),
    **dict.fromkeys(["ru", "uk", "bg", "sr", "kk"], frozenset({"Cyrillic"})),
    **dict.fromkeys(["ar", "fa", "ur"], frozenset({"Arabic"})),
    **dict.fromkeys(["hi", "mr"], frozenset({"Devanagari"})),
    "zh": frozenset({"Han"}), "ja": frozenset({"Han", "Kana"}), "ko": frozenset({"Hangul"}),
    "el": frozenset({"Greek"}), "he": frozenset({"Hebrew"}), "th": frozenset({"Thai"}),
}  # fmt: skip
"""The common languages by their code of ISO 639-1, with the scripts that they are written in."""
SURE = 0.6
"""The probability from which another language excludes the wanted one, and four times its own."""
CHARACTERS = 600
"""More of a sentence says nothing new."""


def languages_of(script: str = "") -> list[str]:
    """The codes of the common languages; with ``script``, only of those written in it."""
    return [code for code, written in LANGUAGES.items() if not script or script in written]


def scripts_of(language: str) -> frozenset[str]:
    """The scripts of a language; of a script, itself; of a Latin-written language that is not among the common ones, Latin; else empty."""
    if language in SCRIPTS:
        return frozenset({language})
    return LANGUAGES.get(language) or (frozenset({"Latin"}) if language in FURTHER else frozenset())


FURTHER = frozenset(["af", "az", "bs", "ca", "cs", "cy", "da", "et", "eo", "eu", "fi", "ga", "hr", "hu", "is", "la", "lt", "lv", "ms", "nb", "nn", "ro", "sk", "sl", "so", "sq", "st", "sw", "tl", "tn", "ts", "xh", "yo", "zu"])  # fmt: skip
"""Further languages in Latin script that the detector knows."""


@dataclass(frozen=True)
class Detector:
    """Distinguishes the languages ``codes``. Raises RunFileError where lingua is not installed or does not know one of
    them.
    """

    codes: tuple[str, ...]

    @cached_property
    def _lingua(self) -> Any:
        try:
            from lingua import IsoCode639_1, Language, LanguageDetectorBuilder
        except ImportError:
            raise RunFileError("rewarders.language needs lingua: pip install lingua-language-detector") from None
        try:
            known = [Language.from_iso_code_639_1(IsoCode639_1.from_str(code)) for code in self.codes]
        except ValueError as error:
            raise RunFileError(f"among = {list(self.codes)}: {error}") from None
        return LanguageDetectorBuilder.from_languages(*known).build()

    def probabilities(self, text: str) -> dict[str, float]:
        """The probability of each language, the highest first; empty where the text has no letters of any."""
        values: Sequence[Any] = self._lingua.compute_language_confidence_values(text[:CHARACTERS])
        return {v.language.iso_code_639_1.name.lower(): v.value for v in values if v.value > 0}

    def best(self, text: str) -> str:
        """The most probable language; empty if there is none."""
        return next(iter(self.probabilities(text)), "")

    def excludes(self, code: str, text: str) -> bool:
        """Whether ``text`` is surely in another of the languages."""
        found = self.probabilities(text)
        best = next(iter(found), code)
        return best != code and found[best] >= max(SURE, 4 * found.get(code, 0.0))
