"""Runs the remaining stages of a run, in order."""

from __future__ import annotations

import logging

from learner.learner import Learner

log = logging.getLogger("learner")


def first_stage(learner: Learner) -> int:
    """The index of the stage to continue with: the open one, else the one after the last closed stage.

    The run's last stage continues although it is closed, if it is reinforcement and the run file now has more steps.
    """
    done, stages = learner.progress, learner.config.stages
    if not done.closed:
        return done.stage
    at_end = done.stage == len(stages) - 1 and learner.config.training(done.stage) is not None
    return done.stage if at_end and stages[done.stage].total_steps() > done.stage_step else done.stage + 1


def run_stages(learner: Learner) -> bool:
    """Run the remaining stages. Returns False if the learner is to stop before the last one has ended."""
    done = learner.progress
    first = first_stage(learner)
    if done.closed and first == done.stage:
        stage = learner.config.stages[first]
        log.info(
            "stage %s goes on from step %d to %d; a falling rate is that of %d steps", stage.name, done.stage_step,
            stage.total_steps(), stage.total_steps(),
        )  # fmt: skip
    for index, stage in enumerate(learner.config.stages):
        if index < first:
            continue
        learner.telemetry.begin_stage(index, stage)
        if not stage.run(learner, index):
            return False
        learner.close_stage(index)
    return True
