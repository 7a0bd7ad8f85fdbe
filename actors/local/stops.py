"""Stop strings: which token may complete one, and whether it has."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

BROKEN = "\ufffd"  # what a tokenizer returns for a token that is part of a character


class StopFinder:
    """Finds stop strings as they are completed, decoding no more than the few tokens that can hold one."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._texts: list[str] = []
        self.candidates = lru_cache(maxsize=16)(self._candidates)

    def _candidates(self, stops: tuple[str, ...]) -> frozenset[int]:
        """The tokens with which one of ``stops`` may be complete."""
        if not self._texts:
            self._texts = self._tokenizer.decode_batch(
                [[i] for i in range(self._vocabulary)], skip_special_tokens=False
            )
        return frozenset(i for i, text in enumerate(self._texts) if any(_may_complete(text, stop) for stop in stops))

    def hit(self, ids: list[int], stops: tuple[str, ...]) -> bool:
        """Whether one of ``stops`` is complete with the last of ``ids``; each token has at least one byte of it."""
        window = max(len(stop.encode()) for stop in stops) + 4
        text = self._tokenizer.decode(ids[-window:], skip_special_tokens=False)
        return any(stop in text for stop in stops)


def _may_complete(text: str, stop: str) -> bool:
    if stop in text or (BROKEN in text and not stop.isascii()):
        return True
    return any(stop.endswith(text[:k]) for k in range(1, min(len(text), len(stop)) + 1))
