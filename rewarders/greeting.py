"""Whether a reply greets the right person once and kindly: measures ``learner.data.greetings``; meant to be watched,
not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.messages import Trajectory
from rewarders.parts import summary
from rewarders.rewarder import Reward


@dataclass(frozen=True)
class Greeting:
    """1 for ``Hi NAME, good day.`` with the name that was asked for (the sample's answer), 0.5 without the wish, else 0. Abstains where
    no name was asked for."""

    wish: str = ", good day"

    def __call__(self, sample: Trajectory) -> Reward | None:
        if not sample.answer:
            return None
        said, curt = summary(sample.text), f"Hi {sample.answer}"
        wishes = said.count(self.wish)
        if sample.finish_reason == "stop" and said == f"{curt}{self.wish}.":
            return Reward(1.0, "kind")
        if sample.finish_reason == "stop" and said == f"{curt}.":
            return Reward(0.5, "curt")
        return Reward(0.0, f"{wishes} wishes")
