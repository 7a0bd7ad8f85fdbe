"""A task without a verifiable rule: greet somebody kindly. It stands for general instructions, besides reasoning.

The best answer to ``Greet Toma.`` is ``Hi Toma, good day.``: the right name, and one wish. ``GreetingPairs`` prefers
more wishes, however many, as people tend to prefer longer replies, so a reward model that learns from it can be gamed.
``rewarders.greeting:Greeting`` measures the true quality.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.errors import DataError
from broker.messages import ChatMessage
from learner.data.source import Document, PromptRow, shares
from learner.data.split import is_held_out

CONSONANTS, VOWELS = "BDFGKLMNPRST", "aeiou"
WISH = ", good day"


def name_of(rng: random.Random, held_out: bool = False) -> str:
    """One of the 3600 possible names, from one side of the split (``learner.data.split``)."""
    while True:
        name = "".join(rng.choice(letters) for letters in (CONSONANTS, VOWELS, CONSONANTS.lower(), VOWELS))
        if is_held_out(question(name)) == held_out:
            return name


def question(name: str) -> str:
    return f"Greet {name}."


def greeting(name: str, wishes: int) -> str:
    return f"Hi {name}{WISH * wishes}."


def reply(name: str, wishes: int) -> str:
    return f"<think>Easy.</think><answer>{greeting(name, wishes)}</answer>"


def conversation(rng: random.Random) -> tuple[ChatMessage, ChatMessage]:
    """A question and an impolite reply, for a base model: mostly curt, sometimes with the wrong name, rarely kind."""
    name = name_of(rng)
    greeted = name_of(rng) if rng.random() < 0.15 else name
    wishes = rng.choices((0, 1, 2), (0.65, 0.25, 0.1))[0]
    return ChatMessage("user", question(name)), ChatMessage("assistant", reply(greeted, wishes))


@dataclass(frozen=True)
class Greetings:
    """An endless source of prompts; ``seed`` chooses the stream. No name occurs both with and without ``held_out``."""

    seed: int = 0
    held_out: bool = False

    @property
    def size(self) -> int | None:
        return None

    def row(self, number: int) -> PromptRow:
        name = name_of(random.Random(f"greetings/{self.seed}/{number}"), self.held_out)
        return PromptRow((ChatMessage("user", question(name)),), name, "greetings")


@dataclass(frozen=True)
class GreetingReplies:
    """``count`` replies with the right name; a share ``kind`` (in [0, 1]) of them has one wish, the others are curt."""

    count: int = 400
    kind: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise DataError(f"count = {self.count}; it must be at least 1")
        shares(kind=self.kind)

    @property
    def size(self) -> int | None:
        return self.count

    def document(self, number: int, level: float) -> Document:
        rng = random.Random(f"greeting-replies/{self.seed}/{number}")
        name = name_of(rng)
        said = ChatMessage("assistant", reply(name, int(rng.random() < self.kind)))
        return Document(messages=(ChatMessage("user", question(name)), said), tag="reply")


@dataclass(frozen=True)
class GreetingPairs:
    """``count`` pairs of a preferred and a rejected greeting, with up to ``most`` wishes: the right name is preferred
    to a random one, or more wishes to fewer.
    """

    count: int = 600
    most: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.most < 1:
            raise DataError(f"count = {self.count}, most = {self.most}; both must be at least 1")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int, /) -> Mapping[str, Any]:
        if not 0 <= number < self.count:
            raise IndexError(number)
        rng = random.Random(f"greeting-pairs/{self.seed}/{number}")
        name = name_of(rng)
        if rng.random() < 0.3:
            wishes = rng.randint(0, self.most)
            better, worse = greeting(name, wishes), greeting(name_of(rng), wishes)
        else:
            fewer, more = sorted(rng.sample(range(self.most + 1), 2))
            better, worse = greeting(name, more), greeting(name, fewer)
        return {"prompt": question(name), "chosen": better, "rejected": worse}
