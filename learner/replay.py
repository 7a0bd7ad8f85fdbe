"""Trains recorded steps again without any actor: bitwise the same on one CPU thread, or with other options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from broker.errors import CheckpointError, RunFault
from broker.messages import StepResult
from broker.run import Run
from learner.config import LearnerConfig
from learner.opening import execute_again, model_path
from learner.planning.records import ManifestReader
from learner.planning.recovery import read_tail
from learner.training.checkpoint import Checkpoints
from learner.training.state import LearnerState
from learner.training.trainer import state_sha256


def replay(
    run: Run,
    first: int,
    last: int,
    out: Path,
    changed: Run | None = None,
    on_step: Callable[[StepResult], None] = lambda result: None,
) -> str:
    """Execute steps ``first..last`` of ``run`` and write the resulting checkpoint to ``out``; returns the weights' sha256.

    The steps before ``first`` that no checkpoint covers are executed as they were recorded; from ``first`` on the options
    of ``changed`` hold, if it is given. ``on_step`` gets what each of them gave. Raises CheckpointError if no checkpoint lies at or before ``first - 1``, RunFault if
    the log has no such steps.
    """
    state = LearnerState(LearnerConfig(run.file), model_path(run), run.table.seed, run.directory)
    older = [(path, p) for path, p in Checkpoints(run.directory / "checkpoints").all() if p.version < first]
    if not older:
        raise CheckpointError(f"no checkpoint of {run.directory} lies before step {first}")
    state.load(older[-1][0])
    log = run.open_log()
    reader = ManifestReader(log, run.topics)
    try:
        tail = read_tail(log, run.topics, state.progress.steps_offset)
        for manifest, offset in tail.manifests:
            if manifest.step > last:
                break
            if manifest.step == first and changed is not None:
                state.reconfigure(LearnerConfig(changed.file), manifest.stage)
            result = execute_again(state, manifest, offset, reader, tail)
            if result is not None and manifest.step >= first:
                on_step(result)
    finally:
        reader.close()
        log.close()
    if state.progress.version != last:
        raise RunFault(f"the log of {run.table.name} ends with step {state.progress.version}; step {last} is not in it")
    state.save(Checkpoints(out), keep=1, name=f"replay-{first}-{last}")
    return state_sha256(state.model)
