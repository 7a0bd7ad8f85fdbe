"""Runs the remaining stages of a run, in order."""

from __future__ import annotations

import logging

from learner.config import LearnerConfig
from learner.learner import Learner
from learner.training.checkpoint import Progress

log = logging.getLogger("learner")


def first_stage(learner: Learner) -> int:
    """The index of the stage to continue with: the open one, else the one after the last closed stage.

    A closed stage continues if it ``may_go_on`` and has not reached its aim.
    """
    done = learner.progress
    if not done.closed:
        return done.stage
    on = may_go_on(learner.config, done) and not learner.config.stages[done.stage].is_reached(learner)
    return done.stage if on else done.stage + 1


def may_go_on(config: LearnerConfig, done: Progress) -> bool:
    """Whether the closed stage has steps left: it is the run's last one, it is reinforcement, and it ended early or the run file
    now has more steps."""
    at_end = done.stage == len(config.stages) - 1 and config.training(done.stage) is not None
    return at_end and config.stages[done.stage].total_steps() > done.stage_step


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
