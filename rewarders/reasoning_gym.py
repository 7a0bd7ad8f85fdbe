"""reasoning-gym's own scorers as a rewarder: each of its tasks knows how to judge an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from broker.errors import RunFileError
from broker.messages import Trajectory
from rewarders.rewarder import Reward
from rewarders.text import after_thinking, answer_span


@dataclass(frozen=True)
class ReasoningGym:
    """The score in [0, 1] that the task itself gives to the answer (in answer tags, or all that follows the thinking).

    Abstains on samples that carry no reasoning-gym entry in ``metadata["reasoning_gym"]``. Answers longer than
    ``max_length`` characters score 0 unread.
    """

    max_length: int = 4096
    _scorers: dict[str, Callable[[str, dict[str, Any]], float]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, sample: Trajectory) -> Reward | None:
        carried = sample.metadata.get("reasoning_gym")
        if not isinstance(carried, dict):
            return None
        answer = answer_span(after_thinking(sample.text))
        if answer is None or len(answer) > self.max_length:
            return Reward(0.0, "no single answer of acceptable length")
        score = float(self.scorer(carried["dataset"])(answer.strip(), _with_tuples(carried)))
        return Reward(score, f"{carried['dataset']}: {answer.strip()[:60]!r}")

    def scorer(self, name: str) -> Callable[[str, dict[str, Any]], float]:
        """The scorer of task ``name``. Raises RunFileError if reasoning-gym is not installed."""
        if name not in self._scorers:
            try:
                import reasoning_gym
            except ImportError:
                raise RunFileError("rewarders.reasoning_gym needs reasoning-gym: pip install 'headrace[gym]'") from None
            self._scorers[name] = reasoning_gym.get_score_answer_fn(name)
        return self._scorers[name]


def _with_tuples(carried: dict[str, Any]) -> dict[str, Any]:
    """The entry as its task made it: what the wire turned into lists, under the keys of ``tuples``, is tuples again."""
    entry = carried["entry"]
    again = {key: _tuples(entry["metadata"][key]) for key in carried.get("tuples", ())}
    return {**entry, "metadata": {**entry["metadata"], **again}} if again else entry


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
