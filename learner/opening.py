"""Opens a learner. It recovers the state that a killed learner left (the newest checkpoint, then the manifests after it, executed again from
the log: no sample is generated again and none is trained twice), and wires log, planner, weight road, control and metrics."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from broker.control.server import ControlServer
from broker.errors import HeldByAnother
from broker.log import Log, Producer
from broker.messages import Manifest, StepResult, encode
from broker.ownership import refuse_records_of_another
from broker.patience import PatientProducer, wait_for_log
from broker.run import Run
from broker.topics import STEPS_OWNER
from learner.aside import Aside, was_executed
from learner.config import LearnerConfig
from learner.endings import Endings, evaluations_of
from learner.learner import Learner
from learner.planning.again import Found, set_aside
from learner.planning.collect import Collections
from learner.planning.feed import Feed
from learner.planning.join import Join
from learner.planning.outages import Outages
from learner.planning.planner import Planner
from learner.planning.records import ManifestReader
from learner.planning.recovery import Recovered, Tail, read_outstanding, read_tail
from learner.planning.requests import judges
from learner.planning.thread import Planning, PlanningThread
from learner.reading import Redone
from learner.serving.publish import Publishing, announce_control
from learner.serving.road import Road
from learner.serving.shifts import Shifts
from learner.sources import Sources
from learner.stages.running import may_go_on
from learner.telemetry import Telemetry
from learner.training.checkpoint import Checkpoints
from learner.training.executor import execute
from learner.training.placement import ALONE, Placement
from learner.training.state import LearnerState
from monitoring.daemon import Stop

log_ = logging.getLogger("learner")
SETTLE_SECONDS = 3.0  # time for the previous learner's actors to find this one, before it takes the shared devices
TAKEOVER_SECONDS = 15.0  # a learner that is being ended may hold the run's steps topic for this long


@dataclass(slots=True)
class Recovery:
    """What recovery found: a supervised stage's own state, and the stage's step that it began at."""

    tail: Tail
    extra: Mapping[str, Any] = field(default_factory=dict)
    resumed_step: int = 0


def open_learner(
    run: Run,
    config: LearnerConfig,
    stop: Stop,
    telemetry: Telemetry,
    stack: ExitStack,
    name: str,
    placement: Placement = ALONE,
    road: Callable[..., Road] = Publishing,
    idle: Callable[[], None] | None = None,
) -> Learner:
    """The learner of ``run``, recovered; what it opens is closed with ``stack``.

    ``road`` makes the near end of the weight road. With ``idle`` everything is done on the caller's thread: it is called whenever the
    learner waits, and runs a round of the others. Raises HeldByAnother if the run has a learner that lives.
    """
    owner = f"{name} (pid {os.getpid()} on {socket.gethostname()})"
    log = run.open_log(stop, telemetry.broker)
    stack.callback(log.close)

    def patient(producer: Producer) -> Producer:
        found = PatientProducer(producer, stop, telemetry.log_away)
        stack.callback(found.close)
        return found

    wait_for_log(lambda: refuse_records_of_another(run, log), stop)
    steps = patient(exclusive_steps(log, run, owner, stop))
    results = patient(log.producer())
    record = _recorder(run, results)
    aside = Aside(run.topics, steps, placement.world)
    state = LearnerState(config, model_path(run), run.table.seed, run.directory, placement)
    control = ControlServer(run.broker.control, run.control_keys())
    stack.callback(control.close)
    publishing = road(run, state, owner, telemetry, stop, control)
    stack.callback(publishing.close)
    shifts = Shifts(control, state, config.learner, telemetry, stop, publishing)
    if shifts.colocated:  # there may be steps to execute again, and that needs the devices
        known = announce_control(run, log, results, control.endpoint, owner)
        shifts.begin(SETTLE_SECONDS if known else 0.0)

    checkpoints = Checkpoints(run.directory / "checkpoints")
    checkpoints.put_back()
    redone = recover(run, log, state, checkpoints, record, aside=aside)
    publishing.open()
    found = read_outstanding(log, run.topics, redone.tail)
    done = state.progress
    earlier = evaluations_of(log, run.topics, done.stage) if done.closed and may_go_on(config, done) else []
    endings = Endings(run, telemetry, [*earlier, *redone.tail.endings])
    outages = Outages(lambda rewarder, since: telemetry.metrics.away_since(rewarder).set(since))
    join = Join(log, run.topics, state.vocabulary, found.state, owner, patient(log.producer()), outages)
    stack.callback(join.close)
    join.add(found.groups)
    planner = _planner(run, config, join, found, steps, patient(log.producer()), state, publishing, telemetry)
    again = partial(set_aside, log, run.topics)
    collections = Collections(join, steps, run.topics.steps)
    planning = _planning(planner, collections, endings, shifts, config, telemetry, again, idle)
    planning.start()
    stack.callback(planning.stop)
    shifts.end()

    def restore(last: int) -> None:
        recover(run, log, state, checkpoints, record, last)

    unfinished = {g.prompt.collection for g in found.groups if g.prompt.purpose != "train"}
    return Learner(
        run, config, stop, telemetry, state, checkpoints, planning, shifts, publishing, steps, record, endings, unfinished,
        Sources(run, config, found.state.eras, planner.feed.cursor), redone.extra, redone.resumed_step,
        restore, Redone(redone.tail.read), aside,
    )  # fmt: skip


def _recorder(run: Run, results: Producer) -> Callable[[StepResult], None]:
    """Writes what a step gave. Metrics may be written twice after a redo; the last holds."""

    def record(result: StepResult) -> None:
        results.send(run.topics.steps, f"result/{result.step}".encode(), encode(result))
        results.flush()

    return record


def recover(
    run: Run,
    log: Log,
    state: LearnerState,
    checkpoints: Checkpoints,
    record: Callable[[StepResult], None],
    last: int | None = None,
    aside: Aside | None = None,
) -> Recovery:
    """Load the newest checkpoint and execute the manifests that follow it, at most up to step ``last``.

    With ``aside`` a step that was planned and never executed is set aside if it cannot be, and all before it is executed again."""
    while (found := _redo(run, log, state, checkpoints, record, last, aside)) is None:
        pass
    return found


def _redo(
    run: Run,
    log: Log,
    state: LearnerState,
    checkpoints: Checkpoints,
    record: Callable[[StepResult], None],
    last: int | None,
    aside: Aside | None,
) -> Recovery | None:
    """One try of ``recover``; None if it has set a step aside."""
    extra: Mapping[str, Any] = {}
    resumed_step = 0
    newest = checkpoints.newest()
    if newest is not None:
        path, progress = newest
        log_.info("resuming from checkpoint %s (version %d)", path.name, progress.version)
        extra = state.load(path)
        resumed_step = progress.stage_step + progress.closed  # a stage that is over has made its last evaluation
    else:
        state.start(state.config.stages[0].initial())
    tail = read_tail(log, run.topics, state.progress.steps_offset)
    if tail.manifests:
        log_.info("executing %d manifests again", len(tail.manifests))
    with closing(ManifestReader(log, run.topics)) as reader:
        for manifest, offset in tail.manifests:
            if last is not None and manifest.step > last:
                break
            try:
                result = execute_again(state, manifest, offset, reader, tail)
            except Exception as error:
                if aside is None or not aside.takes(manifest, error) or was_executed(log, run.topics, manifest, offset):
                    raise
                aside.put(manifest, offset - 1, error)
                return None
            if result is not None:
                record(result)
    if newest is not None and state.progress.stage != newest[1].stage:  # what was kept belongs to a stage that is over
        extra, resumed_step = {}, 0
    return Recovery(tail, extra, resumed_step)


def execute_again(
    state: LearnerState, manifest: Manifest, offset: int, reader: ManifestReader, tail: Tail
) -> StepResult | None:
    """Execute a manifest of the log as it was executed then: one that was set aside trains nothing again."""
    why = tail.set_aside.get(manifest.step, "") if manifest.kind == "step" else ""
    return execute(state, manifest, () if why else reader.groups(manifest), offset, why)


def _planner(
    run: Run,
    config: LearnerConfig,
    join: Join,
    found: Recovered,
    steps: Producer,
    prompts: Producer,
    state: LearnerState,
    publishing: Road,
    telemetry: Telemetry,
) -> Planner:
    """The planner behind what recovery found; groups no longer wait for rewarders that have left the run file."""
    topics = run.topics
    feed = Feed(prompts, topics.prompts, topics.partitions, found.cursor, found.missing, topics.deadletters)
    feed.eras.update(found.state.eras)
    planner = Planner(
        join, feed, steps, topics.steps, state.progress.version, time.time(), found.fed, lambda: publishing.published,
        lambda groups: telemetry.metrics.asked_again.inc(groups), found.expired,
    )  # fmt: skip
    waited_for = config.judging(run.table.rewards) | judges(run.directory)
    planner.release(frozenset(n for g in found.groups for n in g.prompt.rewards) - waited_for)
    return planner


def _planning(
    planner: Planner,
    collections: Collections,
    endings: Endings,
    shifts: Shifts,
    config: LearnerConfig,
    telemetry: Telemetry,
    again: Callable[[int, int], Found],
    idle: Callable[[], None] | None,
) -> Planning:
    telemetry.metrics.outstanding.set_function(lambda: len(planner.join.groups))
    telemetry.metrics.duplicates.set_function(lambda: planner.join.duplicates)
    ahead = config.learner.shift_steps if shifts.colocated else 1
    how: dict[str, Any] = {"ahead": ahead, "resting": lambda: shifts.under_way, "aside": again}
    if idle is not None:
        return Planning(planner, collections, endings.take, idle=idle, **how)
    return PlanningThread(planner, collections, endings.take, log_away=telemetry.log_away, **how)


def exclusive_steps(log: Log, run: Run, owner: str, stop: Stop) -> Producer:
    """The right to write the run's steps. Raises HeldByAnother if another learner still holds it after the time allowed for a take-over."""
    deadline = time.monotonic() + TAKEOVER_SECONDS
    name = f"{run.table.name}.{STEPS_OWNER}"
    while True:
        try:
            return wait_for_log(lambda: log.exclusive_producer(name, owner), stop)
        except HeldByAnother:
            if time.monotonic() > deadline or stop.wait(0.5):
                raise


def model_path(run: Run) -> str:
    """The run file's model: a directory beside the run file, one from the working directory, or a Hugging Face id."""
    beside = run.file.resolve(run.table.model)
    return str(beside) if beside.is_dir() else run.table.model
