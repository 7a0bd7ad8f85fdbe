"""reasoning-gym's procedurally generated tasks as prompts and as documents; any task by name, with its options.

A task is generated in blocks of ``BLOCK`` entries, each with a different seed, because some tasks build all their
entries at once or refuse more. reasoning-gym draws entry ``i`` from ``seed + i``, so nearby seeds would give the same
entries, shifted; we hash the seeds so that they are far apart.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from broker.errors import DataError
from broker.messages import ChatMessage
from broker.spelling import nearest
from learner.data.source import Document, PromptRow, shares
from learner.data.split import is_held_out

BLOCK = 10_000
SPAN = {
    "all": 1,
    "train": 16,
    "held_out": 128,
}  # how many entries of the data set are tried for a row, to find one on its side of the split


@dataclass(frozen=True)
class ReasoningGymTasks:
    """An endless source of questions from ``tasks`` in turn: a list of names, or a table of name -> options. ``seed``
    chooses the stream.

    ``split``: ``train`` or ``held_out`` takes one side of the split by question text (no question is on both sides),
    ``all`` takes both. ``template`` wraps the question, in place of ``{question}``. Raises DataError for an unknown
    task, options that it rejects, or an entry that it cannot generate.
    """

    tasks: Sequence[str] | Mapping[str, Mapping[str, Any]] = ()
    seed: int = 0
    split: str = "all"
    template: str = "{question}"
    _blocks: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.tasks or isinstance(self.tasks, str):
            raise DataError(f"tasks = {self.tasks!r} must name some of reasoning-gym's tasks")
        if self.split not in SPAN:
            raise DataError(f"split = {self.split!r} must be 'all', 'train' or 'held_out'")
        if "{question}" not in self.template:
            raise DataError(f"template = {self.template!r} must hold {{question}}")
        object.__setattr__(self, "_blocks", lru_cache(maxsize=2 * len(self.names))(self._block))
        for name in self.names:
            self._blocks(name, 0)

    @property
    def names(self) -> list[str]:
        return list(self.tasks)

    @property
    def size(self) -> int | None:
        return None

    def _block(self, name: str, number: int) -> Any:
        """Block ``number`` of task ``name``: a data set of ``BLOCK`` entries, which most tasks generate on access."""
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

        if name not in DATASETS:
            raise DataError(f"tasks: reasoning-gym has no task {name!r}{nearest(name, sorted(DATASETS))}")
        options = dict(self.tasks[name]) if isinstance(self.tasks, Mapping) else {}
        for taken in ("seed", "size"):
            if taken in options:
                raise DataError(
                    f"tasks: {name!r} may not set {taken!r}; the source is endless and has a seed of its own"
                )
        digest = hashlib.blake2b(f"{self.seed}/{name}/{number}".encode(), digest_size=4).digest()
        try:
            return reasoning_gym.create_dataset(name, size=BLOCK, seed=int.from_bytes(digest, "little") >> 1, **options)
        except (TypeError, AssertionError, ValueError) as error:
            raise DataError(f"tasks: options of {name!r} are refused: {error}") from error

    def entry(self, number: int) -> tuple[str, dict[str, Any]]:
        """The task name and reasoning-gym's entry of row ``number``. Raises DataError."""
        place, turn = divmod(number, len(self.names))
        name = self.names[turn]
        span = SPAN[self.split]
        for index in range(place * span, (place + 1) * span):
            found = self._generate(name, index)
            if self.split == "all" or is_held_out(found["question"]) == (self.split == "held_out"):
                return name, found
        raise DataError(
            f"tasks: {name!r} has no question in split {self.split!r}; widen its options, or use split 'all'"
        )

    def _generate(self, name: str, index: int) -> dict[str, Any]:
        block, at = divmod(index, BLOCK)
        try:
            return dict(self._blocks(name, block)[at])
        except Exception as error:  # third-party code: any error means that there is no such entry
            raise DataError(f"tasks: {name!r} cannot make entry {index}: {type(error).__name__}: {error}") from error

    def row(self, number: int) -> PromptRow:
        name, entry = self.entry(number)
        metadata = entry["metadata"]
        wire = {"question": entry["question"], "answer": entry["answer"], "metadata": jsonable(metadata)}
        carried = {"dataset": name, "entry": wire, "tuples": tuple_keys(metadata)}
        answer = None if entry["answer"] is None else str(entry["answer"])
        return PromptRow((self._ask(entry),), answer, name, {"reasoning_gym": carried})

    def _ask(self, entry: Mapping[str, Any]) -> ChatMessage:
        return ChatMessage("user", self.template.replace("{question}", entry["question"]))


@dataclass(frozen=True)
class ReasoningGymDocuments(ReasoningGymTasks):
    """Conversations that answer the questions of ``tasks``, to train a base model on.

    A share ``right`` (in [0, 1]) of the answers is correct; the others are answers to other rows. Such a model knows
    the form of an answer, and is sometimes right.
    """

    right: float = 0.5

    def __post_init__(self) -> None:
        shares(right=self.right)
        super().__post_init__()

    def document(self, number: int, level: float) -> Document:
        name, entry = self.entry(number)
        rng = random.Random(f"gym/{self.seed}/{number}")
        answer = entry["answer"]
        if rng.random() >= self.right:
            answer = self._other(number, answer, rng)
        reply = f"<think>{name}</think><answer>{answer}</answer>"
        return Document(messages=(self._ask(entry), ChatMessage("assistant", reply)), tag="reply")

    def _other(self, number: int, answer: Any, rng: random.Random) -> Any:
        """An answer that differs from ``answer``, of a nearby row of the same task; ``answer`` itself if twenty rows
        have no other.
        """
        for _ in range(20):
            other = self.entry(number + len(self.names) * rng.randint(1, 50))[1]["answer"]
            if other != answer:
                return other
        return answer


def jsonable(value: Any) -> Any:
    """``value`` as JSON data; what JSON cannot represent becomes text."""
    return json.loads(json.dumps(value, default=str))


def tuple_keys(metadata: Mapping[str, Any]) -> list[str]:
    """The keys whose values are tuples at every level. JSON turns them into lists, but some scorers compare them with
    ``==``.
    """
    return [key for key, value in metadata.items() if isinstance(value, tuple) and _only_tuples(value)]


def _only_tuples(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_only_tuples(part) for part in value)
    return not isinstance(value, list | dict | set)
