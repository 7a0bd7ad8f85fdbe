"""The learner's end of the ring, wired: log, planner, executor, publisher, control, metrics. The stages drive it.

``open_learner`` recovers what a killed learner left: newest checkpoint, then the manifests behind it, executed again from
the log; no sample is generated again and none is trained twice.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from broker.control.server import ControlServer
from broker.errors import HeldByAnother, RunFileError
from broker.log import Log, Producer
from broker.messages import Evaluation, Sampling, StepResult, encode
from broker.patience import PatientProducer, wait_for_log
from broker.run import Run
from broker.runfile import RunTable
from broker.spelling import nearest
from broker.topics import STEPS_OWNER
from learner.config import EvaluateStage, LearnerConfig, LearnerTable, RlStage, SamplingTable
from learner.data.registry import open_documents, open_prompts
from learner.data.source import DocumentSource
from learner.planning.evaluate import Evaluations, Request
from learner.planning.feed import Ask, Feed, Schedule
from learner.planning.join import Join
from learner.planning.planner import Planned, Planner, StagePlan
from learner.planning.records import ManifestReader
from learner.planning.recovery import Tail, read_outstanding, read_tail
from learner.planning.requests import find, place
from learner.planning.thread import PlanningThread
from learner.serving.publish import Publishing, announce_control
from learner.serving.shifts import Turns
from learner.telemetry import Telemetry
from learner.training.checkpoint import Checkpoints, Progress
from learner.training.executor import Executor
from learner.training.placement import ALONE, ParallelPlan
from learner.training.sft import SftReport
from monitoring.daemon import Stop

log_ = logging.getLogger("learner")
SFT_RECORD_EVERY = 10  # steps of supervised training between two records in the log
SETTLE_SECONDS = 3.0  # that actors of a learner before this one have to find it, before it takes devices that it shares
READY_SECONDS = 0.02  # between two looks whether a turn's steps are planned
TAKEOVER_SECONDS = 15.0  # a learner that is being ended may hold the run's steps for this long


class Learner:
    """What a stage can do: wait for planned steps, execute them, evaluate, save, close."""

    def __init__(
        self, run: Run, config: LearnerConfig, stop: Stop, telemetry: Telemetry, stack: ExitStack, name: str,
        plan: ParallelPlan = ALONE,
    ) -> None:  # fmt: skip
        self.run, self.config, self.stop, self.telemetry = run, config, stop, telemetry
        self.owner = f"{name} (pid {os.getpid()} on {socket.gethostname()})"
        self.log: Log = run.open_log(stop, telemetry.broker)
        stack.callback(self.log.close)
        steps = self._patient(exclusive_steps(self.log, run, self.owner, stop))
        stack.callback(steps.close)
        self._results = self._patient(self.log.producer())
        stack.callback(self._results.close)
        self.checkpoints = Checkpoints(run.directory / "checkpoints")
        self.executor = Executor(config, model_path(run), run.table.seed, run.directory, plan)
        self.evaluated: dict[str, float] = {}
        """pass@1 by the name of each evaluation since the checkpoint that this learner began with."""
        self._schedules: dict[tuple[str, bool], Schedule] = {}
        self._plan: StagePlan | None = None
        self._mix = run.table.rewards
        self._file = run.file
        self.unfinished: set[str] = set()
        """Evaluations that a learner before this one began and did not end."""
        self._asked: set[str] = set()
        self.extra: Mapping[str, Any] = {}
        self.resumed_step = 0
        self.turns = self._first_turn(stack)
        tail = self._recover()
        control, table = self.turns.control, config.learner
        self.publishing = Publishing(run, self.executor, table, self.owner, telemetry, stop, control)
        stack.callback(self.publishing.close)
        self.turns.settled = self.publishing.settled
        planner, evaluations = self._planner(steps, tail, stack)
        self.planning = PlanningThread(planner, evaluations, self._evaluation_done, self.telemetry.log_away, self.turns)
        telemetry.metrics.outstanding.set_function(lambda: len(planner.join.groups))
        self.planning.start()
        stack.callback(self.planning.stop)
        self.turns.end()
        self.turns.publish = self.publish

    def _patient(self, producer: Producer) -> Producer:
        return PatientProducer(producer, self.stop, self.telemetry.log_away)

    # -- start ---------------------------------------------------------------------------------------------------------

    def _first_turn(self, stack: ExitStack) -> Turns:
        """The control road; on devices that it shares, a learner begins in its turn: it may have steps to execute again."""
        control = ControlServer(self.run.broker.control, self.run.control_keys())
        stack.callback(control.close)
        turns = Turns(control, self.executor, self.config.learner, self.telemetry, self.stop)
        if turns.colocated:
            known = announce_control(self.run, self.log, self._results, control.endpoint, self.owner)
            turns.begin(SETTLE_SECONDS if known else 0.0)
        return turns

    def _recover(self) -> Tail:
        """Load the newest checkpoint and execute the manifests that follow it."""
        found = self.checkpoints.newest()
        if found is not None:
            path, progress = found
            log_.info("resuming from checkpoint %s (version %d)", path.name, progress.version)
            self.extra = self.executor.load(path)
            self.resumed_step = 0 if progress.closed else progress.stage_step
        else:
            first = self.config.stages[0]
            self.executor.start(getattr(first, "init", "pretrained"))
        tail = read_tail(self.log, self.run.topics, self.progress.steps_offset)
        self.evaluated = {e.name: e.pass_at_1 for e in tail.evaluations}
        if tail.manifests:
            log_.info("executing %d manifests again", len(tail.manifests))
        reader = ManifestReader(self.log, self.run.topics)
        for manifest, offset in tail.manifests:
            result = self.executor.execute(manifest, reader.groups(manifest), offset)
            if result is not None:
                self.record(result)
        reader.close()
        return tail

    def _planner(self, steps: Producer, tail: Tail, stack: ExitStack) -> tuple[Planner, Evaluations]:
        topics = self.run.topics
        found = read_outstanding(self.log, topics, tail)
        letters = self._patient(self.log.producer())
        join = Join(self.log, topics, self.executor.vocabulary, found.state, self.owner, letters)
        stack.callback(join.close)
        join.add(found.groups)
        self.unfinished = {g.prompt.collection for g in found.groups if g.prompt.purpose == "eval"}
        prompts = self._patient(self.log.producer())
        stack.callback(prompts.close)
        feed = Feed(prompts, topics.prompts, topics.partitions, found.cursor)
        feed.missing = found.missing
        planner = Planner(join, feed, steps, topics.steps, self.progress.version, time.time(), found.fed)
        planner.published = lambda: self.publishing.published
        evaluations = Evaluations(join, steps, topics.steps)
        return planner, evaluations

    # -- what stages use -----------------------------------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        return self.executor.progress

    def schedule(self, name: str, shuffle: bool) -> Schedule:
        """The order of data source ``name``. Raises RunFileError if the run file has none of that name."""
        key = (name, shuffle)
        if key not in self._schedules:
            table = self.config.data.get(name)
            if table is None:
                raise RunFileError(f"[data] has no {name!r}{nearest(name, list(self.config.data))}")
            self._schedules[key] = Schedule(
                name, open_prompts(name, table, self.run.file), self.run.table.seed, shuffle
            )
        return self._schedules[key]

    def stage_plan(self, index: int, stage: RlStage) -> StagePlan:
        table = self.config.rl(stage)
        ask = Ask(table.group_size, self._mix, sampling(table.sampling))
        self.telemetry.limits(table.max_lag, table.credits)
        begun = self.progress.stage_step if self.progress.stage == index and not self.progress.closed else 0
        last = self.progress.version + stage.steps - begun
        return StagePlan(index, table, self.schedule(stage.data, True), ask, last)

    def begin(self, plan: StagePlan | None) -> None:
        """Plan steps of an RL stage from now on (None: of no stage)."""
        self._plan = plan
        self.planning.begin(plan)

    def end_plan(self) -> None:
        """Plan no more steps of the stage, and take those that are planned already: a manifest is an order."""
        self.begin(None)
        while (planned := self.planning.next(timeout=0.0)) is not None:
            self.turns.begin()
            self.take(planned)
        self.turns.end()
        self.telemetry.limits(0, 0)

    def _follow_mix(self) -> None:
        """Take up the reward mix of an edited run file: the groups that are fed from now on carry it."""
        try:
            edited = self._file.reread()
            if edited is None:
                return
            mix = edited.table("run", RunTable).rewards
        except RunFileError as error:
            log_.warning("the run file was edited, and the old mix stays: %s", error)
            return
        self._file = edited
        if mix != self._mix and self._plan is not None:
            log_.info("groups are from now on fed with the mix %s", mix)
            self._mix = mix
            self.begin(replace(self._plan, ask=replace(self._plan.ask, rewards=mix)))

    def _follow_asked(self) -> None:
        """Begin the evaluations that somebody has asked for meanwhile."""
        for asked in find(self.run.directory, self._asked):
            self._asked.add(asked.name)
            if asked.name in self.evaluated:  # a learner was killed between its answer and the removal of the request
                place(self.run.directory, asked.name).unlink(missing_ok=True)
                continue
            try:
                self.ask(self.progress.stage, asked.name, self.progress.version, asked.stage(), self.config.learner)
            except RunFileError as error:
                log_.warning("evaluation %s: %s", asked.name, error)
                place(self.run.directory, asked.name).unlink(missing_ok=True)

    def next(self) -> Planned | None:
        """Wait for the next planned step; None when the learner is to stop. A turn on shared devices begins once all its steps are
        planned, and goes on as long as another is."""
        if self.turns.under_way:
            planned = None if self.stop else self.planning.next(timeout=0.0)
            if planned is not None:
                return planned
            self.turns.end()
        planned = self._wait_planned()
        if planned is not None:
            self.turns.begin()
        return planned

    def _wait_planned(self) -> Planned | None:
        with self.telemetry.waiting("wait_data"):
            while not self.stop:
                self._follow_mix()
                self._follow_asked()
                if self.turns.colocated and not self.planning.is_ready():
                    self.stop.wait(READY_SECONDS)
                elif (planned := self.planning.next(timeout=0.2)) is not None:
                    return planned
        return None

    def take(self, planned: Planned) -> StepResult | None:
        """Execute a planned manifest: the new version is recorded and published, its credits come back."""
        result = self.executor.execute(planned.manifest, planned.groups, planned.offset)
        self.planning.call(lambda planner, _: planner.executed_step(planned.manifest))
        if result is not None:
            table = self.config.learner
            if self.progress.version % table.publish_every == 0:
                self.publish()
            result = self.telemetry.step(result)
            self.telemetry.trained(planned)
            self.record(result)
        return result

    def progress_in_stage(self, index: int, report: SftReport) -> None:
        """Take in one step of supervised training: it makes no policy version, but it is recorded and counted."""
        before = self.progress
        self.executor.progress = Progress(before.version, index, report.stage_step, False, before.steps_offset)
        result = StepResult(before.version, index, report.stage_step, report.metrics, report.phases, time.time())
        self.telemetry.step(result)
        if report.stage_step % SFT_RECORD_EVERY == 0 or report.last:
            self.record(result)

    def documents(self, name: str) -> DocumentSource:
        table = self.config.data.get(name)
        if table is None:
            raise RunFileError(f"[data] has no {name!r}{nearest(name, list(self.config.data))}")
        return open_documents(name, table, self.run.file)

    def publish(self) -> None:
        if self.turns.under_way:  # the engines rest: it is done at the turn's end
            return
        with self.telemetry.phase("publish"):
            self.publishing.publish(self.progress.version)

    def record(self, result: StepResult) -> None:
        """Write what a step gave. Metrics may be written twice after a redo; the last holds."""
        self._results.send(self.run.topics.steps, f"result/{result.step}".encode(), encode(result))
        self._results.flush()

    def save(self, table: LearnerTable, name: str = "", extra: Mapping[str, Any] | None = None) -> Path:
        with self.telemetry.phase("checkpoint"):
            return self.executor.save(self.checkpoints, table.keep_checkpoints, name, extra)

    def close_stage(self, index: int) -> None:
        """End the stage durably, in the log and in a checkpoint. All that was planned must have been taken (``end_plan``)."""
        with self.turns.turn():
            self.take(self.planning.call(lambda planner, _: planner.close(index)))
        self.save(self.config.learner)

    def replace_weights(self, index: int, where: str) -> None:
        """Make the weights in ``where`` (a directory of the run, or a model id) the next policy version."""
        with self.turns.turn():
            self.take(self.planning.call(lambda planner, _: planner.weights(index, where)))
        self.publish()

    def ask(self, index: int, name: str, step: int, stage: EvaluateStage, table: LearnerTable) -> None:
        """Begin evaluation ``name``, unless it has been made; what is already under way of it goes on."""
        if name in self.evaluated:
            return
        schedule = self.schedule(stage.data, False)
        ask = Ask(stage.k, self._mix, sampling(stage.sampling or table.sampling), "eval", name)
        request = Request(name, step, index, stage.k, stage.rewarder, table.deadline, time.time())

        def begin(planner: Planner, evaluations: Evaluations) -> None:
            planner.ask_evaluation(schedule, ask, stage.questions, self.progress.version)
            evaluations.expect(request)

        self.planning.call(begin)

    def wait_evaluations(self) -> bool:
        """Wait for all evaluations under way; False when the learner is to stop."""
        while self.planning.call(lambda _, evaluations: evaluations.pending):
            if self.stop.wait(0.1):
                return False
            self._follow_asked()
        return True

    def _evaluation_done(self, result: Evaluation) -> None:
        self.evaluated[result.name] = result.pass_at_1
        place(self.run.directory, result.name).unlink(missing_ok=True)
        self.telemetry.evaluation(result)


def exclusive_steps(log: Log, run: Run, owner: str, stop: Stop) -> Producer:
    """The right to write the run's steps. Raises HeldByAnother if another learner lives on beyond a take-over's time."""
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


def sampling(table: SamplingTable) -> Sampling:
    return Sampling(table.temperature, table.top_p, table.max_new_tokens, table.stop)
