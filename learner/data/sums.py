"""A task on which a tiny model can learn to reason: signed sums modulo a number, one operation at a time.

``Compute 3+7-2+9 mod 10.`` is answered by the chain ``3+7=0,0-2=8,8+9=7`` and ``\\boxed{7}``. A random guess is right
with probability 1 / ``modulus``; more terms are harder.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from broker.errors import DataError
from broker.messages import ChatMessage
from learner.data.source import Document, PromptRow, Span, shares
from learner.data.split import is_held_out

ATTEMPTS = 10_000  # failed draws after which a side of the split counts as empty
Sum = tuple[int, tuple[tuple[str, int], ...]]  # first term, then sign and term


@dataclass(frozen=True)
class SignedSums:
    """An endless source of questions; ``seed`` chooses the stream. No question occurs both with and without
    ``held_out``.
    """

    min_terms: int = 4
    max_terms: int = 6
    modulus: int = 10
    seed: int = 0
    held_out: bool = False

    def __post_init__(self) -> None:
        check_terms(self.min_terms, self.max_terms, self.modulus)

    @property
    def size(self) -> int | None:
        return None

    def row(self, number: int) -> PromptRow:
        rng = random.Random(f"sums/{self.seed}/{number}")
        problem = draw(rng, rng.randint(self.min_terms, self.max_terms), self.modulus, self.held_out)
        answer = str(value(problem, self.modulus))
        return PromptRow(
            (ChatMessage("user", question(problem, self.modulus)),), answer, "sums", {"terms": 1 + len(problem[1])}
        )


@dataclass(frozen=True)
class SumsCorpus:
    """Documents to train a tiny base model on: worked problems, and conversations of varying effort and form.

    A share ``raw_share`` are raw documents of three worked problems, of which the chains are trained (tag ``chain``).
    The others are conversations of two questions; a share ``guesses`` of the replies skips the working, and a share
    ``broken`` has a wrong form. ``level`` raises the number of terms. Contains no question that
    ``SignedSums(held_out=True)`` may ask. Raises DataError for shares outside [0, 1], and terms that cannot be drawn.
    """

    max_terms: int = 6
    modulus: int = 10
    raw_share: float = 0.5
    guesses: float = 0.8
    broken: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_terms(2, self.max_terms, self.modulus)
        shares(raw_share=self.raw_share, guesses=self.guesses, broken=self.broken)

    @property
    def size(self) -> int | None:
        return None

    def document(self, number: int, level: float) -> Document:
        rng = random.Random(f"corpus/{self.seed}/{number}")
        most = 2 + int(level * (self.max_terms - 2) + 1e-9)
        if rng.random() < self.raw_share:
            return Document(spans=tuple(span for _ in range(3) for span in self._worked(rng, most)))
        return Document(messages=tuple(turn for _ in range(2) for turn in self._conversation(rng, most)), tag="reply")

    def _worked(self, rng: random.Random, most: int) -> tuple[Span, Span]:
        problem = draw(rng, rng.randint(2, most), self.modulus)
        return Span(question(problem, self.modulus) + "\n", False), Span(
            chain(problem, self.modulus) + "\n", True, "chain"
        )

    def _conversation(self, rng: random.Random, most: int) -> tuple[ChatMessage, ChatMessage]:
        problem = draw(rng, rng.randint(2, most), self.modulus)
        thought = "Easy." if rng.random() < self.guesses else chain(problem, self.modulus)
        reply = replied(rng, thought, value(problem, self.modulus), self.broken)
        return ChatMessage("user", question(problem, self.modulus)), ChatMessage("assistant", reply)


def replied(rng: random.Random, thought: str, answer: int, broken: float) -> str:
    """A reply with a thought and an answer in the expected form; with probability ``broken``, a part of the form is
    missing.
    """
    if rng.random() < broken:
        return rng.choice(
            (
                f"<think>{thought}</think>\\boxed{{{answer}}}",
                f"{thought}<answer>\\boxed{{{answer}}}</answer>",
                f"<think>{thought}</think><answer>{answer}</answer>",
            )
        )
    return f"<think>{thought}</think><answer>\\boxed{{{answer}}}</answer>"


def check_terms(fewest: int, most: int, modulus: int) -> None:
    """Raises DataError for numbers with which no sums can be drawn."""
    if not 2 <= fewest <= most <= modulus <= 10:
        raise DataError(f"needs 2 <= min_terms {fewest} <= max_terms {most} <= modulus {modulus} <= 10")


def draw(rng: random.Random, terms: int, modulus: int, held_out: bool = False) -> Sum:
    """A random sum of ``terms`` distinct digits, so that the next term is never ambiguous, from one side of the split.
    Raises DataError.
    """
    for _ in range(ATTEMPTS):
        digits = rng.sample(range(modulus), terms)
        problem = digits[0], tuple((rng.choice("+-"), digit) for digit in digits[1:])
        if is_held_out(question(problem, modulus)) == held_out:
            return problem
    raise DataError(f"no sums of {terms} terms mod {modulus} are held out; ask for more terms or a larger modulus")


def value(problem: Sum, modulus: int) -> int:
    first, rest = problem
    return (first + sum(d if sign == "+" else -d for sign, d in rest)) % modulus


def question(problem: Sum, modulus: int) -> str:
    first, rest = problem
    return f"Compute {first}{''.join(sign + str(d) for sign, d in rest)} mod {modulus}."


def steps(problem: Sum, modulus: int) -> list[str]:
    """The operations in order: ``3+7=0``, ``0-2=8``."""
    at, found = problem[0], []
    for sign, digit in problem[1]:
        result = (at + digit if sign == "+" else at - digit) % modulus
        found.append(f"{at}{sign}{digit}={result}")
        at = result
    return found


def chain(problem: Sum, modulus: int) -> str:
    """The working: ``3+7=0,0-2=8``."""
    return ",".join(steps(problem, modulus))
