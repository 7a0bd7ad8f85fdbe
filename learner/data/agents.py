"""Places for the tasks of agents outside: prompts that ask nothing, and are what an agent makes of them (``headrace serve``)."""

from __future__ import annotations

from dataclasses import dataclass

from broker.messages import ChatMessage
from broker.sessions import OPEN
from learner.data.source import PromptRow


@dataclass(frozen=True)
class OpenTasks:
    """Without end: each row is a group for a task that agents name, or for sessions that name none."""

    @property
    def size(self) -> int | None:
        return None

    def row(self, number: int) -> PromptRow:
        return PromptRow((ChatMessage("user", "(what an agent asks)"),), kind=OPEN)
