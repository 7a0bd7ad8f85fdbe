"""A prompt under way in an actor."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from actors.environment import Turn
from actors.episodes import Episode
from actors.turns import resumed
from broker.log import Record
from broker.messages import Prompt


@dataclass(slots=True)
class Work:
    """A prompt under way: ``missing`` samples are to come; ``episodes`` are those that have begun."""

    record: Record
    prompt: Prompt
    missing: set[int]
    episodes: dict[int, Episode] = field(default_factory=dict)
    tickets: dict[int, int] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    begun: dict[int, float] = field(default_factory=dict)
    """When an episode was opened, or an agent first came to it here."""

    def is_of(self, record: Record) -> bool:
        """Whether ``record`` is the one that asked for this, delivered again; else its group was asked for a second time."""
        mine = self.record
        return (record.topic, record.partition, record.offset) == (mine.topic, mine.partition, mine.offset)

    def resume(self, index: int, turn: Turn) -> Episode:
        """Go on with what an agent began in another actor."""
        assert turn.asked is not None
        self.begun[index] = time.monotonic()
        episode = self.episodes[index] = resumed(self.prompt, index, turn.asked.earlier)
        return episode
