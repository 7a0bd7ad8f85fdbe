"""What the learner tells of its pace: how long a step usually takes, and since when its stage goes on."""

from __future__ import annotations

import time
from statistics import median

import pytest
from prometheus_client import CollectorRegistry

from broker.messages import StepResult
from learner.stages.sft import SftStage
from learner.telemetry import USUAL_STEPS, Telemetry


def value(registry: CollectorRegistry, name: str) -> float:
    found = registry.get_sample_value(f"headrace_{name}")
    assert found is not None
    return found


def test_the_usual_time_of_a_step_is_that_of_the_last_ones_of_the_stage() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    before = time.time()
    telemetry.begin_stage(0, SftStage(kind="sft"))
    assert before <= value(registry, "stage_begin_timestamp_seconds") <= time.time()
    assert value(registry, "usual_step_seconds") == value(registry, "last_step_timestamp_seconds") == 0
    taken = []
    for step in range(USUAL_STEPS + 4):
        time.sleep(0.02 if step < 4 else 0.0)
        result = telemetry.step(StepResult(step + 1, 0, step + 1, {}, {}, time.time()))
        taken.append(result.metrics["step_seconds"])
    assert value(registry, "usual_step_seconds") == pytest.approx(median(taken[-USUAL_STEPS:]))
    assert value(registry, "steps_total") == len(taken)
    telemetry.begin_stage(1, SftStage(kind="sft"))
    assert value(registry, "usual_step_seconds") == 0


def test_the_memory_of_a_step_is_exported() -> None:
    registry = CollectorRegistry()
    names = ("activation_memory_bytes", "parameter_bytes", "trained_parameter_bytes", "optimizer_state_bytes")
    metrics = {name: float(number) for number, name in enumerate(names, 1)}
    Telemetry(registry).step(StepResult(1, 0, 1, metrics, {}, time.time()))
    assert [value(registry, name) for name in names] == [1, 2, 3, 4]
