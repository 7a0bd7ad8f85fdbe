"""reasoning-gym's procedurally generated tasks, any of them by name with its options, as prompts and as documents.

A task is generated in blocks of ``BLOCK`` entries, each block from a seed of its own: some tasks build all their entries
at once or refuse more. Entry ``i`` of reasoning-gym is drawn from ``seed + i``, so seeds that are near each other would give
the same entries shifted; the seeds here are hashed, and are far apart.
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
from learner.data.source import Document, PromptRow
from learner.data.split import is_held_out

BLOCK = 10_000
SPAN = {
    "all": 1,
    "train": 16,
    "held_out": 128,
}  # number of the data set's own entries that a row may choose from so that it falls on its side


@dataclass(frozen=True)
class ReasoningGymTasks:
    """Questions from ``tasks`` in turn: a list of names, or a table of name -> options. ``seed`` chooses the stream.

    ``split``: ``train`` or ``held_out`` asks from one side of the split by question text (no question is on both), ``all``
    from both. ``template`` wraps the question (``{question}`` stands for it). Raises DataError for a task that is not there,
    options that it refuses, or an entry that it cannot make.
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
        """Block ``number`` of task ``name``: ``BLOCK`` entries, generated when they are asked for."""
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
        """Task name and reasoning-gym's own entry of row ``number``."""
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
        except Exception as error:  # of another project: whatever it raises means that it has no such entry
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
    """Conversations that answer the questions of ``tasks``: a share ``right`` correctly, the others as another row is answered.

    What a base model is made from: it knows form and kind of the answers, and is right sometimes.
    """

    right: float = 0.5

    def document(self, number: int, level: float) -> Document:
        name, entry = self.entry(number)
        rng = random.Random(f"gym/{self.seed}/{number}")
        answer = entry["answer"]
        if rng.random() >= self.right:
            answer = self._other(number, answer, rng)
        reply = f"<think>{name}</think><answer>{answer}</answer>"
        return Document(messages=(self._ask(entry), ChatMessage("assistant", reply)), tag="reply")

    def _other(self, number: int, answer: Any, rng: random.Random) -> Any:
        """The answer of a row nearby of the same task that differs from ``answer``, if there is one among twenty."""
        for _ in range(20):
            other = self.entry(number + len(self.names) * rng.randint(1, 50))[1]["answer"]
            if other != answer:
                return other
        return answer


def jsonable(value: Any) -> Any:
    """``value`` as JSON says it: what JSON cannot say becomes text."""
    return json.loads(json.dumps(value, default=str))


def tuple_keys(metadata: Mapping[str, Any]) -> list[str]:
    """The keys whose values are tuples all the way down. JSON makes lists of them, and some scorers compare with ``==``."""
    return [key for key, value in metadata.items() if isinstance(value, tuple) and _only_tuples(value)]


def _only_tuples(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_only_tuples(part) for part in value)
    return not isinstance(value, list | dict | set)
