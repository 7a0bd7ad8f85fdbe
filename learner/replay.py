"""Trains recorded steps again without any actor: bitwise the same on one CPU thread, or with other options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from broker.errors import CheckpointError, RunFault
from broker.messages import StepResult
from broker.run import Run
from learner.config import LearnerConfig
from learner.planning.records import ManifestReader
from learner.planning.recovery import read_tail
from learner.ring import model_path
from learner.training.checkpoint import Checkpoints
from learner.training.executor import Executor
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
    executor = Executor(LearnerConfig(run.file), model_path(run), run.table.seed, run.directory)
    older = [(path, p) for path, p in Checkpoints(run.directory / "checkpoints").all() if p.version < first]
    if not older:
        raise CheckpointError(f"no checkpoint of {run.directory} lies before step {first}")
    executor.load(older[-1][0])
    log = run.open_log()
    reader = ManifestReader(log, run.topics)
    try:
        for manifest, offset in read_tail(log, run.topics, executor.progress.steps_offset).manifests:
            if manifest.step > last:
                break
            if manifest.step == first and changed is not None:
                executor.reconfigure(LearnerConfig(changed.file), manifest.stage)
            result = executor.execute(manifest, reader.groups(manifest), offset)
            if result is not None and manifest.step >= first:
                on_step(result)
    finally:
        reader.close()
        log.close()
    if executor.progress.version != last:
        raise RunFault(
            f"the log of {run.table.name} ends with step {executor.progress.version}; step {last} is not in it"
        )
    executor.save(Checkpoints(out), keep=1, name=f"replay-{first}-{last}")
    return state_sha256(executor.model)
