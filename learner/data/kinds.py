"""A task that tests what a pretrained model knows about words: ``Which is an animal: chair, tiger, rain, hammer?``

A random guess is right with probability 1 / ``choices``. Held-out questions share no word with the others, neither as
an answer nor as a wrong choice: a model that answers them has learned to express what it knew, not these words.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from broker.errors import DataError
from broker.messages import ChatMessage
from learner.data.source import Document, PromptRow
from learner.data.split import is_held_out

SYSTEM = "Answer with one word."
KINDS = {
    "an animal": "tiger dog cat horse cow lion wolf rabbit elephant sheep monkey snake goat bear fox deer pig camel zebra giraffe whale eagle frog",
    "a fruit": "apple banana pear grape cherry lemon peach mango strawberry plum melon pineapple kiwi lime raspberry blueberry apricot papaya",
    "a color": "red blue green yellow purple black white brown pink gray violet beige crimson turquoise scarlet maroon magenta",
    "a country": "France Germany Japan Brazil Canada India Spain Egypt Italy Mexico Norway Sweden Poland Peru Chile Kenya Nigeria Greece Portugal Vietnam",
    "a piece of clothing": "shirt coat hat sock dress jacket glove shoe scarf skirt sweater boots trousers jeans blouse vest",
    "a musical instrument": "piano guitar violin drum flute trumpet harp cello clarinet saxophone banjo trombone ukulele accordion",
    "a vehicle": "car truck bus train bicycle boat tram motorcycle helicopter airplane ferry taxi scooter submarine",
    "a tool": "hammer saw drill wrench shovel screwdriver axe chisel pliers rake spade ladder",
    "a part of the body": "hand foot nose ear eye knee elbow finger shoulder neck tongue ankle wrist toe chin",
    "a profession": "doctor teacher lawyer nurse farmer plumber carpenter pilot baker dentist engineer butcher accountant journalist",
    "a piece of furniture": "chair table sofa bed desk bookcase wardrobe bench stool dresser armchair cupboard",
    "a kind of weather": "rain snow fog storm thunder hail drizzle blizzard sunshine hurricane",
}  # fmt: skip


@dataclass(frozen=True)
class WordKinds:
    """An endless source of questions; ``seed`` chooses the stream. With ``held_out`` it uses only held-out words, else
    only the others.

    Raises DataError for ``choices`` below 2 or above the number of ``KINDS``.
    """

    choices: int = 4
    seed: int = 0
    held_out: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.choices <= len(KINDS):
            raise DataError(
                f"choices = {self.choices} must be from 2 to {len(KINDS)}: each word is of a kind of its own"
            )

    @property
    def size(self) -> int | None:
        return None

    def row(self, number: int) -> PromptRow:
        rng = random.Random(f"kinds/{self.seed}/{number}")
        kinds = rng.sample(list(KINDS), self.choices)
        chosen = [rng.choice(words(kind, self.held_out)) for kind in kinds]
        answer, shown = chosen[0], list(chosen)
        rng.shuffle(shown)
        text = f"Which is {kinds[0]}: {', '.join(shown)}?"
        asked = (ChatMessage("system", SYSTEM), ChatMessage("user", text))
        return PromptRow(asked, answer, "kinds", {"options": list(shown), "kind": kinds[0]})


@dataclass(frozen=True)
class WordKindDocuments(WordKinds):
    """Documents that teach only the form of an answer, for a cold start: each answer is a random one of the words."""

    def document(self, number: int, level: float) -> Document:
        row = self.row(number)
        said = random.Random(f"kinds/{self.seed}/{number}/said").choice(list(row.metadata["options"]))
        return Document(messages=(*row.messages, ChatMessage("assistant", said)), tag="reply")


def words(kind: str, held_out: bool) -> list[str]:
    """The words of ``kind`` on one side of the split: about a third is held out."""
    return [word for word in KINDS[kind].split() if side(word) == held_out]


def side(word: str) -> bool:
    return any(is_held_out(f"{word}/{turn}") for turn in range(3))
