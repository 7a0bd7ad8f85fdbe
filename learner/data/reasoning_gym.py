"""reasoning-gym's procedurally generated tasks, any of them by name with its options, as prompts and as documents."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from broker.errors import DataError
from broker.messages import ChatMessage
from learner.data.source import Document, PromptRow

INSTRUCTION = "{question}"
MAX_ROWS = 1 << 30


@dataclass(frozen=True)
class ReasoningGymTasks:
    """Questions from ``tasks`` in turn: a list of names, or a table of name -> options. ``seed`` chooses the stream."""

    tasks: Sequence[str] | Mapping[str, Mapping[str, Any]] = ()
    seed: int = 0
    template: str = INSTRUCTION

    def __post_init__(self) -> None:
        if not self.tasks:
            raise DataError("tasks is empty; name some of reasoning-gym's tasks")
        _ = self.sources

    @cached_property
    def sources(self) -> list[tuple[str, Any]]:
        """The datasets by name, each endless for our purposes."""
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

        named = self.tasks if isinstance(self.tasks, Mapping) else {name: {} for name in self.tasks}
        found = []
        for name, options in named.items():
            if name not in DATASETS:
                from broker.runfile import nearest

                raise DataError(f"tasks: reasoning-gym has no task {name!r}{nearest(name, sorted(DATASETS))}")
            try:
                found.append(
                    (name, reasoning_gym.create_dataset(name, **{"size": MAX_ROWS, "seed": self.seed, **options}))
                )
            except (TypeError, AssertionError, ValueError) as error:
                raise DataError(f"tasks: options of {name!r} are refused: {error}") from error
        return found

    @property
    def size(self) -> int | None:
        return None

    def entry(self, number: int) -> tuple[str, dict[str, Any]]:
        """Task name and reasoning-gym's own entry of row ``number``."""
        name, source = self.sources[number % len(self.sources)]
        entry = source[number // len(self.sources)]
        return name, {"question": entry["question"], "answer": entry["answer"], "metadata": jsonable(entry["metadata"])}

    def row(self, number: int) -> PromptRow:
        name, entry = self.entry(number)
        text = self.template.replace("{question}", entry["question"])
        answer = None if entry["answer"] is None else str(entry["answer"])
        return PromptRow(
            (ChatMessage("user", text),), answer, name, {"reasoning_gym": {"dataset": name, "entry": entry}}
        )


@dataclass(frozen=True)
class ReasoningGymDocuments(ReasoningGymTasks):
    """Conversations that answer the questions of ``tasks``: a share ``right`` correctly, the others with another row's answer.

    What a base model is made from: it knows form and kind of the answers, and is right sometimes.
    """

    right: float = 0.5

    def document(self, number: int, level: float) -> Document:
        name, entry = self.entry(number)
        rng = random.Random(f"gym/{self.seed}/{number}")
        answer = entry["answer"]
        if rng.random() >= self.right:
            answer = self.entry(number + len(self.sources) * rng.randint(1, 50))[1]["answer"]
        text = self.template.replace("{question}", entry["question"])
        reply = f"<think>{name}</think><answer>{answer}</answer>"
        return Document(messages=(ChatMessage("user", text), ChatMessage("assistant", reply)), tag="reply")


def jsonable(value: Any) -> Any:
    """``value`` as JSON says it: what JSON cannot say becomes text."""
    return json.loads(json.dumps(value, default=str))
