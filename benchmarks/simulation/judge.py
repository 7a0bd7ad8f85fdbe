"""A judge that takes its time, as one that asks a model does."""

from __future__ import annotations

import time
from dataclasses import dataclass

from broker.messages import Trajectory
from rewarders.rewarder import Reward


@dataclass(frozen=True)
class Slow:
    """The length of the answer, after ``seconds``."""

    seconds: float = 0.0

    def __call__(self, sample: Trajectory) -> Reward:
        if self.seconds:
            time.sleep(self.seconds)
        return Reward(len(sample.text) / 100)
