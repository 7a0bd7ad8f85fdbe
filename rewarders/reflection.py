"""How much a response thinks about its own thinking: the reflective words of R1 (arXiv 2501.12948, figure 9).

Meant to be watched, not trained on (weight 0, or a shadow): a policy that is rewarded for saying "wait" learns to say
it.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.messages import Trajectory
from monitoring.writing import reflective_counts
from rewarders.parts import part
from rewarders.rewarder import Reward


@dataclass(frozen=True)
class Reflection:
    """The number of reflective words in the part that ``sees`` names, or with ``per`` > 0 their number in so many characters of it."""

    sees: str = "thought"
    per: int = 0

    def __post_init__(self) -> None:
        part(self.sees)

    def __call__(self, sample: Trajectory) -> Reward:
        text = part(self.sees)(sample.text, "")
        counts = reflective_counts(text)
        value = counts.total() * self.per / max(1, len(text)) if self.per > 0 else float(counts.total())
        return Reward(value, ", ".join(f"{word} {n}" for word, n in counts.most_common()))
