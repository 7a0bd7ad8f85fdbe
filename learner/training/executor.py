"""Executes manifests: (state, manifest, its records) -> next state. No other code trains by reinforcement.

The same function serves the normal run, the redo after a crash, and replay.
"""

from __future__ import annotations

import time

from broker.errors import CheckpointError
from broker.messages import Manifest, StepResult
from learner.planning.groups import Judged
from learner.training.checkpoint import Progress
from learner.training.state import LearnerState
from learner.training.trainer import train_step

Groups = tuple[tuple[Judged, ...], ...]


def execute(
    state: LearnerState, manifest: Manifest, groups: Groups, offset: int, set_aside: str = ""
) -> StepResult | None:
    """Execute one manifest; ``offset`` is the offset after it in the ``steps`` topic. Returns the result of a step, else None.

    If the step was set aside (``set_aside`` is the reason), its version is the policy unchanged. Raises CheckpointError if the manifest does
    not follow what ``state`` holds.
    """
    before = state.progress
    if manifest.kind == "fork":
        raise CheckpointError(
            f"{state.directory} has lost the checkpoint that it was forked with, and nothing can make it again but headrace fork"
        )
    if manifest.step != before.version + (manifest.kind != "close"):
        raise CheckpointError(
            f"manifest {manifest.kind!r} of step {manifest.step} does not follow version {before.version}"
        )
    if manifest.kind == "step":
        stage_step = (
            before.stage_step if before.stage == manifest.stage else 0
        )  # also of one that goes on after its close
        result = None if set_aside else _step(state, manifest, groups, stage_step)
        state.progress = Progress(manifest.step, manifest.stage, stage_step + 1, False, offset)
        return result
    if manifest.kind == "weights":
        state.replace(manifest.weights)
        state.progress = Progress(manifest.step, manifest.stage, 0, False, offset)
    elif manifest.kind == "close":
        state.progress = Progress(before.version, manifest.stage, before.stage_step, True, offset)
        state.drop()
    return None


def _step(state: LearnerState, manifest: Manifest, groups: Groups, stage_step: int) -> StepResult:
    stage = manifest.stage
    training, train = state.training(stage), state.train_of(stage)
    train.step, train.stage_step = state.progress.version, stage_step
    report = train_step(train, groups, training, state.config.stages[stage].total_steps())
    metrics = {**report.metrics, **manifest.metrics}
    return StepResult(manifest.step, stage, stage_step + 1, metrics, report.phases, time.time())
