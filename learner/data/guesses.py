"""Data for ``actors.games:GuessNumber``: prompts, and conversations of players who mostly guess without thinking."""

from __future__ import annotations

import random
from dataclasses import dataclass

from broker.errors import DataError
from broker.messages import ChatMessage
from learner.data.source import Document, PromptRow, shares


def check_range(low: int, high: int) -> None:
    """Raises DataError if there is nothing to guess from ``low`` to ``high``."""
    if not low < high:
        raise DataError(f"needs low {low} < high {high}")


def question(low: int, high: int) -> ChatMessage:
    return ChatMessage("user", f"Guess: {low} to {high}")


@dataclass(frozen=True)
class Guesses:
    """An endless source of numbers to guess, from ``low`` to ``high``; ``seed`` chooses the stream.

    There are few different numbers, so an evaluation measures strategy, not generalisation.
    """

    low: int = 0
    high: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self.low, self.high)

    @property
    def size(self) -> int | None:
        return None

    def row(self, number: int) -> PromptRow:
        secret = random.Random(f"guesses/{self.seed}/{number}").randint(self.low, self.high)
        return PromptRow((question(self.low, self.high),), str(secret), "guess")


@dataclass(frozen=True)
class GuessCorpus:
    """Games of up to ``turns`` guesses, an endless source. A share ``sensible`` of the players guesses within the
    remaining range; the others repeat their first guess.
    """

    low: int = 0
    high: int = 9
    turns: int = 5
    sensible: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self.low, self.high)
        if self.turns < 1:
            raise DataError(f"turns = {self.turns}; it must be at least 1")
        shares(sensible=self.sensible)

    @property
    def size(self) -> int | None:
        return None

    def document(self, number: int, level: float) -> Document:
        rng = random.Random(f"guess-corpus/{self.seed}/{number}")
        secret, low, high = rng.randint(self.low, self.high), self.low, self.high
        listens, first = rng.random() < self.sensible, rng.randint(self.low, self.high)
        messages = [question(low, high)]
        for turn in range(self.turns):
            guess = rng.randint(low, high) if listens else first
            messages.append(ChatMessage("assistant", str(guess)))
            if guess == secret or turn + 1 == self.turns:
                break
            low, high = (max(low, guess + 1), high) if guess < secret else (low, min(high, guess - 1))
            messages.append(ChatMessage("user", f"{low} to {high}"))
        return Document(messages=tuple(messages))
