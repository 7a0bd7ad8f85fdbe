"""Whether a response is in a language: by its letters where they are the language's own, else by lingua's models among those that share them."""

from __future__ import annotations

import re
from functools import lru_cache

from broker.errors import MessageError
from broker.spelling import nearest
from monitoring.writing import SCRIPTS, scripts
from rewarders.detector import Detector, languages_of, scripts_of

OWN = {
    "bn": "\u0980-\u09ff", "pa": "\u0a00-\u0a7f", "gu": "\u0a80-\u0aff", "ta": "\u0b80-\u0bff", "te": "\u0c00-\u0c7f",
    "kn": "\u0c80-\u0cff", "ml": "\u0d00-\u0d7f", "ne": "\u0900-\u097f",
}  # fmt: skip
"""Languages whose letters tell them, or that no detector tells from others of the same letters (Nepali)."""
MOST = 0.5  # the share of the letters from which on they decide
CHARACTERS = 20_000


def is_in(text: str, language: str) -> bool:
    """Whether ``text`` is in the language of this code of ISO 639-1 (``zh-cn`` too); text without a letter is in none. Raises MessageError."""
    code, text = language.strip().lower().partition("-")[0], text[:CHARACTERS]
    if code in OWN:
        letters = sum(c.isalpha() for c in text)
        return letters > 0 and len(re.findall(rf"[{OWN[code]}]", text)) > MOST * letters
    wanted = scripts_of(code) if code not in SCRIPTS else frozenset()
    if not wanted:
        raise MessageError(f"language = {language!r} is not known{nearest(code, [*languages_of(), *OWN])}")
    found = scripts(text)
    if sum(found[script] for script in wanted) <= MOST * found.total():
        return False
    if code in ("zh", "ja"):
        return (found["Kana"] * 10 > found.total()) == (code == "ja")
    rivals = tuple(sorted({c for script in wanted for c in languages_of(script)} | {code}))
    return len(rivals) == 1 or _detector(rivals).best(text.lower()) == code


@lru_cache(maxsize=8)
def _detector(codes: tuple[str, ...]) -> Detector:
    return Detector(codes)
