"""The result of a check: one sentence about one place of the run file, with the figures that it found, and the cure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """``error``: the run cannot do what it is asked to; ``warning``: it can, but not as one would expect; ``note``:
    good to know.

    ``where`` names table and key, ``what`` the value and what is wrong with it, ``cure`` what to change.
    """

    level: Level
    where: str
    what: str
    cure: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.cure}" if self.cure else "")


def error(where: str, what: str, cure: str) -> Finding:
    return Finding("error", where, what, cure)


def warning(where: str, what: str, cure: str) -> Finding:
    return Finding("warning", where, what, cure)


def note(where: str, what: str, cure: str = "") -> Finding:
    return Finding("note", where, what, cure)


def share(part: int, whole: int) -> str:
    """``3 of 64 (4.7%)``."""
    return f"{part} of {whole} ({100 * part / max(1, whole):.3g}%)"
