"""The tasks of an environment of the package ``verifiers`` as prompts: the rows of the environment's data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from broker import verifiers
from broker.errors import DataError, RunFileError
from broker.messages import ChatMessage
from learner.data.source import PromptRow


@dataclass(frozen=True)
class VerifiersTasks:
    """``load`` and ``arguments`` choose the environment, as in ``actors.adapters.verifiers``; ``split`` is ``train`` or
    ``eval``, and ``base`` the directory of the run file. Reading a row raises DataError if its prompt is not a list of
    text messages.
    """

    load: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    split: str = "train"
    base: Path = Path()

    def __post_init__(self) -> None:
        if self.split not in ("train", "eval"):
            raise RunFileError(f"[data] split = {self.split!r}: use train or eval")

    @cached_property
    def _rows(self) -> Any:
        made = verifiers.environment(self.load, self.arguments, self.base, "[data]")
        return made.get_dataset() if self.split == "train" else made.get_eval_dataset()

    @property
    def size(self) -> int | None:
        return len(self._rows)

    def row(self, number: int) -> PromptRow:
        row = dict(self._rows[number])
        said = row.get("prompt")
        if not isinstance(said, list) or not all(isinstance(m.get("content"), str) for m in said):
            raise DataError(f"row {number}: its prompt is no list of messages with text")
        info = {"info": row["info"]} if row.get("info") else {}
        messages = tuple(ChatMessage(m["role"], m["content"]) for m in said)
        return PromptRow(messages, row.get("answer") or None, str(row.get("task") or ""), info)
