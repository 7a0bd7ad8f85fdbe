"""Prompts for outside agents (``headrace serve``): placeholders without a question, as an agent brings its own task."""

from __future__ import annotations

from dataclasses import dataclass

from broker.messages import ChatMessage
from broker.sessions import OPEN
from learner.data.source import PromptRow


@dataclass(frozen=True)
class OpenTasks:
    """An endless source: each row becomes the group of a task that agents name, or of sessions that name none."""

    @property
    def size(self) -> int | None:
        return None

    def row(self, number: int) -> PromptRow:
        return PromptRow((ChatMessage("user", "(what an agent asks)"),), kind=OPEN)
