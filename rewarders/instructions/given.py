"""The arguments of an instruction, by name and kind: a data set's mistake is an error that names it, never a wrong answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.errors import MessageError

AT_LEAST, LESS_THAN = "at least", "less than"


@dataclass(frozen=True, slots=True)
class Given:
    """``name`` is the instruction, ``values`` what the data set gives with it. All readers raise MessageError."""

    name: str
    values: Mapping[str, Any]

    def text(self, key: str) -> str:
        found = self.values.get(key)
        if not isinstance(found, str) or not found.strip():
            raise self._wrong(key, "a text")
        return found

    def number(self, key: str) -> int:
        """A whole number of at least 0; tables may have made a float of it."""
        found = self.values.get(key)
        whole = (isinstance(found, int) and not isinstance(found, bool)) or (
            isinstance(found, float) and found.is_integer()
        )
        if not whole or found is None or found < 0:
            raise self._wrong(key, "a whole number of at least 0")
        return int(found)

    def texts(self, key: str) -> list[str]:
        found = self.values.get(key)
        if not isinstance(found, list | tuple) or not found or not all(isinstance(f, str) and f.strip() for f in found):
            raise self._wrong(key, "a list of texts")
        return list(found)

    def holds(self, count: int, number: str, relation: str) -> bool:
        """Whether ``count`` is at least, or less than, what ``number`` says."""
        asked = self.values.get(relation)
        if asked not in (AT_LEAST, LESS_THAN):
            raise self._wrong(relation, f"{AT_LEAST!r} or {LESS_THAN!r}")
        least = self.number(number)
        return count >= least if asked == AT_LEAST else count < least

    def _wrong(self, key: str, what: str) -> MessageError:
        return MessageError(
            f"instruction {self.name!r} has {key} = {str(self.values.get(key))[:80]!r}; it must be {what}"
        )
