"""What the learner tells of its pace: how long a step usually takes, when the last one ended, whether it saves."""

from __future__ import annotations

import time
from statistics import median

import pytest
from prometheus_client import CollectorRegistry

from broker.messages import StepResult
from learner.config import SftStage
from learner.telemetry import USUAL_STEPS, Telemetry


def value(registry: CollectorRegistry, name: str) -> float:
    found = registry.get_sample_value(f"headrace_{name}")
    assert found is not None
    return found


def test_the_usual_time_of_a_step_is_that_of_the_last_ones_of_the_stage() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    assert value(registry, "last_step_timestamp_seconds") == 0
    before = time.time()
    telemetry.begin_stage(0, SftStage(kind="sft"))
    assert before <= value(registry, "last_step_timestamp_seconds") <= time.time()
    assert value(registry, "usual_step_seconds") == 0
    taken = []
    for step in range(USUAL_STEPS + 4):
        time.sleep(0.02 if step < 4 else 0.0)
        result = telemetry.step(StepResult(step + 1, 0, step + 1, {}, {}, time.time()))
        taken.append(result.metrics["step_seconds"])
    assert value(registry, "usual_step_seconds") == pytest.approx(median(taken[-USUAL_STEPS:]))
    assert value(registry, "steps_total") == len(taken)
    telemetry.begin_stage(1, SftStage(kind="sft"))
    assert value(registry, "usual_step_seconds") == 0


def test_a_checkpoint_is_told_while_it_is_written_also_one_that_fails() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    with pytest.raises(OSError), telemetry.phase("checkpoint"):
        assert value(registry, "checkpoint_under_way") == 1
        raise OSError
    assert value(registry, "checkpoint_under_way") == 0
    assert value(registry, "checkpoint_seconds_count") == 1
    with telemetry.phase("publish"):
        assert value(registry, "checkpoint_under_way") == 0
