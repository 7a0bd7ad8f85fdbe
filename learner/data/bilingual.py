"""The sums of ``learner.data.sums`` in two languages of different alphabets, and text for a base model that mixes them.

``Compute 3+7-2 mod 10.`` is worked out as ``so 3+7=0,so 0-2=8``, and ``Дай 3+7-2 mod 10.`` as ``и 3+7=0,и 0-2=8``. The
words before the operations are the only ones in the working, so their letters alone show whether it keeps to one
language. ``metadata["language"]`` is the name of the script, as ``rewarders.language:LanguageConsistency`` expects it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from broker.messages import ChatMessage
from learner.data import greetings
from learner.data.source import Document, PromptRow, Span, shares
from learner.data.sums import Sum, check_terms, draw, question, replied, steps, value


class Tongue(NamedTuple):
    """A language: the verb that asks for a sum, and the word before each operation of the working."""

    ask: str
    then: str


TONGUES = {"Latin": Tongue("Compute", "so"), "Cyrillic": Tongue("Дай", "и")}
_STEP = re.compile(r"(?:(\w+) )?(\d[+-]\d=\d)")
_LAST = re.compile(r"(?<=\d),\s*\w+ \d[+-]\d=\d(?!.*\d[+-]\d=\d)", re.DOTALL)  # the last of several operations


def asked(problem: Sum, modulus: int, language: str) -> str:
    return question(problem, modulus).replace(TONGUES["Latin"].ask, TONGUES[language].ask, 1)


def worked(problem: Sum, modulus: int, languages: list[str]) -> str:
    """The working of ``problem``, where operation i is preceded by the word of ``languages[i]``."""
    return ",".join(
        f"{TONGUES[spoken].then} {step}" for spoken, step in zip(languages, steps(problem, modulus), strict=True)
    )


@dataclass(frozen=True)
class BilingualSums:
    """An endless source of questions, each in a random one of the languages; ``seed`` chooses the stream.

    No sum occurs both with and without ``held_out``, in whatever language.
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
        rng = random.Random(f"bilingual/{self.seed}/{number}")
        problem = draw(rng, rng.randint(self.min_terms, self.max_terms), self.modulus, self.held_out)
        language = rng.choice(list(TONGUES))
        about = {"terms": 1 + len(problem[1]), "language": language}
        said = ChatMessage("user", asked(problem, self.modulus, language))
        return PromptRow((said,), str(value(problem, self.modulus)), "sums", about)


@dataclass(frozen=True)
class BilingualCorpus:
    """Documents to train a tiny bilingual base model on, like ``learner.data.sums:SumsCorpus``, with greetings among
    the conversations.

    A share ``mixed`` of the workings takes each word from a random language; the others keep to the language of the
    question. A share ``greetings`` of the exchanges are greetings (``learner.data.greetings``). Contains no held-out
    question. Shares are in [0, 1].
    """

    max_terms: int = 6
    modulus: int = 10
    raw_share: float = 0.5
    guesses: float = 0.75
    broken: float = 0.2
    mixed: float = 0.7
    greetings: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_terms(2, self.max_terms, self.modulus)
        shares(raw_share=self.raw_share, guesses=self.guesses, broken=self.broken, mixed=self.mixed)
        shares(greetings=self.greetings)

    @property
    def size(self) -> int | None:
        return None

    def document(self, number: int, level: float) -> Document:
        rng = random.Random(f"bilingual-corpus/{self.seed}/{number}")
        most = 2 + int(level * (self.max_terms - 2) + 1e-9)
        if rng.random() < self.raw_share:
            return Document(spans=tuple(span for _ in range(3) for span in self._raw(rng, most)))
        return Document(messages=tuple(turn for _ in range(2) for turn in self._turns(rng, most)), tag="reply")

    def _raw(self, rng: random.Random, most: int) -> Iterator[Span]:
        """A worked problem. Only the operations have the tag ``chain``: a model cannot know which language's word comes
        next.
        """
        problem, language = draw(rng, rng.randint(2, most), self.modulus), rng.choice(list(TONGUES))
        spoken = self._spoken(rng, problem, language)
        yield Span(asked(problem, self.modulus, language) + "\n", False)
        for place, (spoken_in, step) in enumerate(zip(spoken, steps(problem, self.modulus), strict=True)):
            yield Span(TONGUES[spoken_in].then + " ", True)
            yield Span(step + ("," if place + 1 < len(spoken) else "\n"), True, "chain")

    def _turns(self, rng: random.Random, most: int) -> tuple[ChatMessage, ChatMessage]:
        if rng.random() < self.greetings:
            return greetings.conversation(rng)
        problem, language = draw(rng, rng.randint(2, most), self.modulus), rng.choice(list(TONGUES))
        thought = worked(problem, self.modulus, self._spoken(rng, problem, language))
        if rng.random() < self.guesses:
            thought = "Easy."
        reply = replied(rng, thought, value(problem, self.modulus), self.broken)
        return ChatMessage("user", asked(problem, self.modulus, language)), ChatMessage("assistant", reply)

    def _spoken(self, rng: random.Random, problem: Sum, language: str) -> list[str]:
        """The language of each operation's word."""
        if rng.random() >= self.mixed:
            return [language] * len(problem[1])
        return [rng.choice(list(TONGUES)) for _ in problem[1]]


@dataclass(frozen=True)
class OneTongue:
    """A rewriter (see ``learner.rewriting``) that puts the word of the question's language before each operation of a
    worked sum.

    It does not check the result, and returns None for a text without operations. A share ``skips`` (in [0, 1]) of the
    workings loses its last operation, as people leave out what they do in their heads: easier to read, but harder to
    learn for a model.
    """

    skips: float = 0.0

    def __post_init__(self) -> None:
        shares(skips=self.skips)

    def __call__(self, row: Mapping[str, Any]) -> str | None:
        text, said = row["response"], row["messages"][-1]["content"]
        language = next((name for name, tongue in TONGUES.items() if said.startswith(tongue.ask)), None)
        if language is None or not _STEP.search(text):
            return None
        then = TONGUES[language].then
        told = _STEP.sub(lambda found: f"{then} {found[2]}", text)
        if random.Random(f"one-tongue/{said}").random() < self.skips:
            told = _LAST.sub("", told)
        return told
