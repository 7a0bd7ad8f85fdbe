"""Runs the stages that are left, in order."""

from __future__ import annotations

from learner.learner import Learner


def run_stages(learner: Learner) -> bool:
    """False if the learner is to stop before the last stage has ended."""
    done = learner.progress
    first = done.stage + 1 if done.closed else done.stage
    for index, stage in enumerate(learner.config.stages):
        if index < first:
            continue
        learner.telemetry.begin_stage(index, stage)
        if not stage.run(learner, index):
            return False
        learner.close_stage(index)
    return True
