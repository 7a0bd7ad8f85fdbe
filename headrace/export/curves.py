"""The points of a run's curves, from the records of its ``steps`` topic.

train/NAME, phase_seconds/NAME              a step of reinforcement learning, at the policy version that it made
sft/stage_N/train/NAME, .../phase_seconds   a step of supervised training, at its number within the stage
eval/NAME/pass_at_1, cons_at_k, ...         an evaluation; those that a stage makes on its way (NAME:STEP) are one curve
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from broker.errors import DecodeError
from broker.messages import Evaluation, Manifest, Message, StepResult


class Point(NamedTuple):
    """The values of a series at a step; of two at the same step the later record holds. ``time`` is when the log took it."""

    series: str
    step: int
    values: Mapping[str, float]
    time: float


class Curves:
    """Turns records into points, in the order of the log."""

    def __init__(self) -> None:
        self._reinforced: set[int] = set()

    def take(self, message: Message | DecodeError, time: float) -> Point | None:
        """The point that a record gives, if any; one that cannot be read gives none (``headrace verify`` names it)."""
        if isinstance(message, Manifest) and message.kind == "step":
            self._reinforced.add(message.stage)  # a step's manifest lies in front of its result
        elif isinstance(message, StepResult):
            return self._result(message, time)
        elif isinstance(message, Evaluation):
            return _evaluation(message, time)
        return None

    def _result(self, result: StepResult, time: float) -> Point:
        reinforced = result.stage in self._reinforced
        prefix = "" if reinforced else f"sft/stage_{result.stage}/"
        values = {f"{prefix}train/{name}": value for name, value in result.metrics.items()}
        values |= {f"{prefix}phase_seconds/{name}": value for name, value in result.phases.items()}
        return Point(f"{prefix}train", result.step if reinforced else result.stage_step, values, time)


def _evaluation(evaluation: Evaluation, time: float) -> Point:
    stage, _, step = evaluation.name.rpartition(":")
    series = f"eval/{stage if stage and step.isdigit() else evaluation.name}"
    values = {
        "pass_at_1": evaluation.pass_at_1,
        "pass_at_1_low": evaluation.pass_at_1_interval[0],
        "pass_at_1_high": evaluation.pass_at_1_interval[1],
        "cons_at_k": evaluation.cons_at_k,
        "response_tokens": evaluation.response_tokens,
    }
    return Point(series, evaluation.step, {f"{series}/{name}": value for name, value in values.items()}, time)
