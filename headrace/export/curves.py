"""The points of a run's curves, from the records of its ``steps`` topic.

train/NAME, phase_seconds/NAME              a step of reinforcement learning, at the policy version that it made
sft/stage_N/train/NAME, .../phase_seconds   a step of supervised training, at its number within the stage
eval/NAME/pass_at_1, cons_at_k, ...         an evaluation; those that a stage makes on its way (NAME:STEP) are one curve
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from broker.messages import Evaluation, StepResult
from headrace.reading.history import History


class Point(NamedTuple):
    """The values of a series at a step; of two at the same step the later record holds. ``time`` is when the log took it."""

    series: str
    step: int
    values: Mapping[str, float]
    time: float


def points(history: History) -> list[Point]:
    """All points of a history, by series and step."""
    told: list[tuple[object, float]] = [(done.result, done.at) for done in history.executions()]
    told += [(ended.ending, ended.at) for ended in history.endings]
    found = (point(message, at, history.reinforced) for message, at in told)
    return [p for _, p in sorted({(p.series, p.step): p for p in found if p is not None}.items())]


def point(message: object, time: float, reinforced: Collection[int]) -> Point | None:
    """The point that a record gives, if any. ``reinforced`` are the stages that have manifests of steps, which lie in front of their results."""
    if isinstance(message, StepResult):
        return _result(message, time, message.stage in reinforced)
    return _evaluation(message, time) if isinstance(message, Evaluation) else None


def _result(result: StepResult, time: float, reinforced: bool) -> Point:
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
