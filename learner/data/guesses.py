"""The task of ``actors.games:GuessNumber``: its prompts, and conversations in which somebody guesses, mostly without thinking."""

from __future__ import annotations

import random
from dataclasses import dataclass

from broker.errors import DataError
from broker.messages import ChatMessage
from learner.data.source import Document, PromptRow


def question(low: int, high: int) -> ChatMessage:
    return ChatMessage("user", f"Guess: {low} to {high}")


@dataclass(frozen=True)
class Guesses:
    """Numbers to guess, without end; ``seed`` chooses the stream. There are few, so an evaluation shows a strategy, not generalisation."""

    low: int = 0
    high: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise DataError(f"needs low {self.low} < high {self.high}")

    @property
    def size(self) -> int | None:
        return None

    def row(self, number: int) -> PromptRow:
        secret = random.Random(f"guesses/{self.seed}/{number}").randint(self.low, self.high)
        return PromptRow((question(self.low, self.high),), str(secret), "guess")


@dataclass(frozen=True)
class GuessCorpus:
    """Games of up to ``turns`` guesses. A share ``sensible`` of the players guesses where the number still may be; the others insist
    on their first guess, whatever they hear."""

    low: int = 0
    high: int = 9
    turns: int = 5
    sensible: float = 0.3
    seed: int = 0

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
