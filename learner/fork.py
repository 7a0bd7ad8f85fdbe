"""Begins a new run from a step of another one, with its state and the position of its data sources at that step.

The old run is only read, and may still be running. Groups outstanding there at that step stay with it; the new run asks their rows again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from broker.errors import CheckpointError, HeadraceError, RunFault, RunFileError
from broker.log import Log
from broker.messages import Manifest, Origin, PlannerState, Prompt, encode
from broker.run import Run
from broker.topics import STEPS_OWNER
from learner.config import LearnerConfig
from learner.model.adapters import AdapterFiles
from learner.opening import exclusive_steps, execute_again, model_path
from learner.planning.join import read_all
from learner.planning.records import ManifestReader
from learner.planning.recovery import Tail, decoded, read_tail
from learner.training.checkpoint import STATE, Checkpoints, Progress, sync
from learner.training.state import LearnerState
from learner.training.trainer import state_sha256
from monitoring import files
from monitoring.daemon import Stop

log_ = logging.getLogger("learner")
TRIES = 3  # a run that goes on may remove a checkpoint while it is read


@dataclass(frozen=True, slots=True)
class Forked:
    """What has come of it: where the new run begins, how many steps were executed again for it, how many rows are asked anew, and how many
    of those cannot be, because retention has removed their prompts."""

    progress: Progress
    executed: int
    asked_anew: int
    gone: int


def fork(old: Run, step: int, new: Run, say: Callable[[str], None] = log_.info) -> Forked:
    """Make ``new``, whose directory is empty, begin at policy version ``step`` of ``old``, by its own options from there on.

    ``say`` is called with what takes long. Raises RunFault if the log of ``old`` has no such step, CheckpointError if its state cannot be made
    again, RunFileError if the options of ``new`` do not fit the state, LogError.
    """
    refuse_other_beginnings(old, new)
    with closing(old.open_log()) as log:
        state, planner, executed = state_at(old, log, step, say)
        missing, gone = under_way(log, old, planner)
    stage = state.progress.stage
    kept_files(old, new, state.progress)
    planner = PlannerState(cursor=planner.cursor, eras=planner.eras, missing=missing)
    sha256 = state_sha256(state.model)
    origin = Origin(old.table.name, str(old.directory), old.url, step, sha256)
    state.adapters = AdapterFiles(new.directory / "adapters")
    state.progress = replace(state.progress, steps_offset=0)  # until the new log says which
    path = state.save(Checkpoints(new.directory / "checkpoints"), keep=1, name=f"fork-{step:08d}")
    state.close()
    if (
        old.file.tables.get("learner") != new.file.tables.get("learner")
        or old.file.tables["stage"] != new.file.tables["stage"]
    ):
        _try(new, path)  # before the log has heard of the run: a name that was used there cannot be used again
    first = Manifest(step, stage, "fork", state=planner, created=time.time(), origin=origin)
    offset = _begin_log(new, first, lambda offset: _place(path, offset))
    return Forked(replace(state.progress, steps_offset=offset), executed, sum(map(len, missing.values())), gone)


def refuse_other_beginnings(old: Run, new: Run) -> None:
    """Raises RunFileError where the options of ``new`` contradict what it begins with."""
    if new.table.model != old.table.model:
        raise RunFileError(
            f"[run] model = {new.table.model!r}: a fork goes on with the model of its run, {old.table.model!r}; a stage's own "
            "model = ... brings another one"
        )
    if (new.url, new.table.name) == (old.url, old.table.name):
        raise RunFileError(
            f"[run] name = {new.table.name!r} is the old run's, and {new.url} holds it; choose another name"
        )


# -- the state ------------------------------------------------------------------------------------------------------


class Route(NamedTuple):
    """How the state at a step is made: from a checkpoint (None: from the first weights), by executing these manifests."""

    checkpoint: Path | None
    manifests: list[tuple[Manifest, int]]
    planner: PlannerState


def route_to(old: Run, tail: Tail, found: list[tuple[Path, Progress]], step: int) -> Route:
    """The way to ``step`` that executes least. ``tail`` begins before the step, ``found`` are the checkpoints in their order.

    The end of a reinforced stage right behind the step is left open, so that the new run may take more steps of it.
    """
    config = LearnerConfig(old.file)
    reinforced = {i for i in range(len(config.stages)) if config.training(i) is not None}
    way = [(m, end) for m, end in tail.manifests if m.step <= step]
    ends = {end for m, end in way if m.kind == "close" and m.step == step and m.stage in reinforced}
    way = [(m, end) for m, end in way if not ends or end < min(ends)]
    goal = way[-1][1] if way else 0
    usable = [
        (path, p) for path, p in found
        if p.steps_offset < goal or (p.steps_offset == goal and goal and (p.closed or p.stage in reinforced))
    ]  # fmt: skip
    if not usable and goal:  # nothing leads there, but one behind the end of the stage may be left
        usable = [(path, p) for path, p in found if p.version == step and p.closed and p.steps_offset in ends]
        goal = usable[0][1].steps_offset if usable else goal
        way = [(m, end) for m, end in tail.manifests if end <= goal] if usable else way
    path, begun = (usable[-1][0], usable[-1][1].steps_offset) if usable else (None, 0)
    planner = way[-1][0].state if way else PlannerState()
    return Route(path, [(m, end) for m, end in way if end > begun], planner)


def state_at(old: Run, log: Log, step: int, say: Callable[[str], None]) -> tuple[LearnerState, PlannerState, int]:
    """The learner's state at ``step``, that of the planner, and how many steps were executed for it."""
    checkpoints = Checkpoints(old.directory / "checkpoints")
    for tries in range(1, TRIES + 1):
        found = checkpoints.all()
        before = [p.steps_offset for _, p in found if p.version < step]
        tail = read_tail(log, old.topics, before[-1] if before else 0, step)
        must_exist(old, tail, step, max((p.version for _, p in found), default=0))
        route = route_to(old, tail, found, step)
        state = LearnerState(LearnerConfig(old.file), model_path(old), old.table.seed, old.directory)
        ahead = sum(m.kind == "step" for m, _ in route.manifests)
        begun = route.checkpoint.name if route.checkpoint is not None else "the first weights"
        say(f"from {begun}" + (f", executing {ahead} steps again" if ahead else ""))
        try:
            if route.checkpoint is None:
                state.start(state.config.stages[0].initial())
            else:
                state.load(route.checkpoint)
            break
        except (CheckpointError, OSError):
            if tries == TRIES or route.checkpoint is None or route.checkpoint.is_dir():
                raise
    with closing(ManifestReader(log, old.topics)) as reader:
        for manifest, offset in route.manifests:
            execute_again(state, manifest, offset, reader, tail)
    return state, route.planner, ahead


def must_exist(old: Run, tail: Tail, step: int, saved: int) -> None:
    """Raises RunFault if the old run has no such step, and says where it is. ``saved`` is the newest version of a checkpoint."""
    manifests = [m for m, _ in tail.manifests]
    origin = manifests[0].origin if manifests else None
    if origin is not None and step < origin.step:
        raise RunFault(
            f"step {step} is not of {old.directory}: that is a fork of {origin.run} at step {origin.step}, in {origin.where}"
        )
    newest = max([saved, *(m.step for m in manifests)])
    if step > newest:
        raise RunFault(f"{old.directory} has come to step {newest}; there is no step {step} yet")


# -- the data ---------------------------------------------------------------------------------------------------------------


def under_way(log: Log, old: Run, planner: PlannerState) -> tuple[dict[str, tuple[int, ...]], int]:
    """The numbers of the prompts that were fed for training and had no end, by data source; and how many can no longer be told."""
    known, numbers = set(planner.outstanding), {n: set(found) for n, found in planner.missing.items()}
    topic = old.topics.prompts
    begins = log.begins(topic)
    start = {p: max(offset, begins.get(p, 0)) for p, offset in planner.prompts.items()}
    with closing(log.reader(topic, start)) as reader:
        for record in read_all(reader, dict(planner.fed)) if planner.fed else ():
            message = decoded(record)
            if isinstance(message, Prompt) and message.group_id in known:
                known.discard(message.group_id)
                if message.purpose == "train":
                    numbers.setdefault(message.dataset, set()).add(message.number)
    return {name: tuple(sorted(found)) for name, found in numbers.items() if found}, len(known)


# -- the new run ------------------------------------------------------------------------------------------------------------


def kept_files(old: Run, new: Run, progress: Progress) -> None:
    """Bring along what stages up to the one under way have left for later ones: data sets, and models (as hard links where that can be).

    What the old run's later stages have made is theirs: the new run makes its own.
    """
    stages = LearnerConfig(old.file).stages
    later = tuple(f"{stage.name}{mark}" for stage in stages[progress.stage + 1 :] for mark in ".-")
    made = old.directory / "artefacts"
    for path in sorted(made.iterdir()) if made.is_dir() else ():
        if path.is_file() and not path.name.startswith(later or ("\0",)):
            (new.directory / "artefacts").mkdir(exist_ok=True)
            shutil.copy2(path, new.directory / "artefacts" / path.name)
    for index, stage in enumerate(stages[: progress.stage + progress.closed]):
        kept = old.directory / "checkpoints" / f"stage-{index}-{stage.name}"
        if kept.is_dir():
            shutil.copytree(kept, new.directory / "checkpoints" / kept.name, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _begin_log(new: Run, manifest: Manifest, settle: Callable[[int], None]) -> int:
    """Write the first record of the new run, and ``settle`` the offset after it, which is returned. Where it cannot be settled, the log forgets the run."""
    begun = False
    with closing(new.open_log()) as log:
        try:
            with closing(exclusive_steps(log, new, "headrace fork", Stop())) as steps:
                if any(log.ends(new.topics.steps)[p] > begin for p, begin in log.begins(new.topics.steps).items()):
                    raise RunFault(
                        f"{new.url} already holds records of a run named {new.table.name!r}; choose another name: --set run.name=NAME"
                    )
                steps.send(new.topics.steps, b"fork", encode(manifest))
                offset = steps.flush()[-1].offset + 1
                begun = True
                settle(offset)
        except BaseException:
            if begun:
                with suppress(HeadraceError, OSError):  # what went wrong before is the reason to give
                    log.delete([spec.name for spec in new.topics.specs()], [new.topics.group(STEPS_OWNER)])
            raise
    return offset


def _place(path: Path, offset: int) -> None:
    """A checkpoint includes the records of ``steps`` up to this offset."""
    header = json.loads((path / STATE).read_text())
    files.replace(path / STATE, json.dumps({**header, "steps_offset": offset}))
    sync(path / STATE)
    sync(path)


def _try(new: Run, path: Path) -> None:
    """Load the state by the new options. Raises RunFileError if they do not fit it."""
    state = LearnerState(LearnerConfig(new.file), model_path(new), new.table.seed, new.directory)
    try:
        state.load(path)
    except (ValueError, KeyError, RuntimeError) as error:
        raise RunFileError(f"the options do not fit the state of the old run: {error}") from error
