"""An environment whose steps take their time: what is measured is whether anybody else waits for it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from actors.environment import Turn, over, say
from broker.messages import Prompt


@dataclass
class Waiting:
    """Hears ``replies`` replies; every answer takes between 0 and ``longest`` seconds, evenly spread. The outcome is drawn."""

    longest: float = 0.0
    replies: int = 3
    _rng: random.Random = field(default_factory=random.Random, init=False)
    _heard: int = field(default=0, init=False)

    def open(self, prompt: Prompt, index: int) -> Turn:
        self._rng.seed(f"{prompt.group_id}#{index}")
        return Turn(outcome=0.0)

    def step(self, reply: str) -> Turn:
        self._heard += 1
        if self.longest:
            time.sleep(self._rng.uniform(0.0, self.longest))
        if self._heard < self.replies:
            return say("go on")
        return over(self._rng.random())
