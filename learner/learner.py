"""What a stage can do: wait for planned steps, take them, evaluate and collect, save, close. ``learner.opening`` recovers and wires it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.errors import DataError, RunFileError
from broker.log import Producer
from broker.messages import Artefact, Ending, Evaluation, StepResult, encode
from broker.run import Run
from broker.runfile import RunTable
from learner.aside import Aside
from learner.config import LearnerConfig
from learner.endings import Endings
from learner.finite import Finite
from learner.planning.collect import Collection, Finish
from learner.planning.feed import Feeding
from learner.planning.plans import Planned, StagePlan
from learner.planning.requests import find, judges, place
from learner.planning.scores import score
from learner.planning.thread import Planning
from learner.reading import Redone, digest, rows_of
from learner.serving.road import Road
from learner.serving.shifts import Shifts
from learner.sources import Sources
from learner.tables import Benchmark, SamplingTable
from learner.telemetry import Telemetry
from learner.training.checkpoint import Checkpoints, Progress
from learner.training.executor import execute
from learner.training.sft import SftReport
from learner.training.state import LearnerState
from monitoring.daemon import Stop

if TYPE_CHECKING:
    from learner.stages.rl import Phase

log_ = logging.getLogger("learner")
READY_SECONDS = 0.02  # interval at which to check whether the steps of a shift are planned


class Learner:
    """``resumed_step`` is the stage's step that a restart began at, ``unfinished`` are collections that a learner before this one began and
    did not end, ``extra`` is what a supervised stage kept in the checkpoint."""

    def __init__(
        self, run: Run, config: LearnerConfig, stop: Stop, telemetry: Telemetry, state: LearnerState,
        checkpoints: Checkpoints, planning: Planning, shifts: Shifts, road: Road, steps: Producer,
        record: Callable[[StepResult], None], endings: Endings, unfinished: set[str], sources: Sources,
        extra: Mapping[str, Any], resumed_step: int, restore: Callable[[int], None], redone: Redone, aside: Aside,
    ) -> None:  # fmt: skip
        self.run, self.config, self.stop, self.telemetry = run, config, stop, telemetry
        self.state, self.checkpoints, self.planning, self.shifts = state, checkpoints, planning, shifts
        self.unfinished, self.extra, self.resumed_step = unfinished, extra, resumed_step
        self._road, self._steps, self._endings, self._record = road, steps, endings, record
        self.sources, self._restore, self._redone, self._aside = sources, restore, redone, aside
        self._plan: StagePlan | None = None
        self._file = run.file
        self._asked: set[str] = set()
        self._finite = Finite()

    @property
    def progress(self) -> Progress:
        return self.state.progress

    # -- reinforcement -------------------------------------------------------------------------------------------------

    def stage_plan(self, index: int, phases: Sequence[Phase], steps: int) -> StagePlan:
        """What the planner needs to plan ``steps`` of stage ``index``, which asks in the way of ``phases``."""
        training = self.state.training(index)
        self.telemetry.limits(training.max_lag, training.credits)
        begun = self.progress.stage_step if self.progress.stage == index else 0
        names = dict.fromkeys(name for phase in phases for name in phase.weights)
        self.sources.begin_stage(index, self.config.stages[index].name, names, self.progress.version, self.made)
        first = self.progress.version - begun
        asked = [(first + p.begins, self.sources.feedings(p, training.group_size)) for p in phases]
        return StagePlan(index, training, asked[0][1], first + steps, tuple(asked[1:]))

    def begin(self, plan: StagePlan | None) -> None:
        """Plan steps of an RL stage from now on (None: of no stage)."""
        self._plan = plan
        self.planning.begin(plan)

    def end_plan(self) -> None:
        """Plan no more steps of the stage, and take those that are planned already: a manifest is an order."""
        self.begin(None)
        while (planned := self.planning.next(timeout=0.0)) is not None:
            self.shifts.begin()
            self.take(planned)
        self.shifts.end()
        self.telemetry.limits(0, 0)

    def next(self) -> Planned | None:
        """Wait for the next planned step; None when the learner is to stop. A shift begins once all its steps are planned."""
        if self.shifts.under_way:
            planned = None if self.stop else self.planning.next(timeout=0.0)
            if planned is not None:
                return planned
            self.shifts.end()
        planned = self._wait_planned()
        if planned is not None:
            self.shifts.begin()
        return planned

    def _wait_planned(self) -> Planned | None:
        with self.telemetry.waiting("wait_data"):
            while not self.stop:
                self._road.check()
                self._follow_mix()
                self._follow_asked()
                if self.shifts.colocated and not self.planning.is_ready():
                    self.planning.wait(READY_SECONDS)
                elif (planned := self.planning.next(timeout=0.2)) is not None:
                    return planned
        return None

    def take(self, planned: Planned) -> StepResult | None:
        """Execute a planned manifest: the new version is recorded and published, and its credits are returned.

        One that cannot be executed is set aside in the log, and the next version is the policy as it was.
        """
        manifest = planned.manifest
        self.state.check()
        try:
            result = execute(self.state, manifest, planned.groups, planned.offset)
        except Exception as failed:  # it must not end the run
            error = failed
            if not self._aside.takes(manifest, error):
                raise
            self.planning.call(lambda: self._aside.put(manifest, planned.offset - 1, error))
            self._restore(manifest.step)  # whatever the failure left is discarded
            result = None
        self.planning.executed(manifest)
        if manifest.kind == "step" and self.progress.version % self.config.learner.publish_every == 0:
            self.publish()
        if result is not None:
            result = self.telemetry.step(result)
            self.telemetry.trained(planned)
            self._record(result)
            told = result.metrics
            self._finite.take(result.step, told.get("grad_norm"), told.get("tokens_invalid", 0.0))
        return result

    def publish(self) -> None:
        if not self.shifts.under_way:  # while the engines rest, it is done at the shift's end
            self._road.publish(self.progress.version)

    # -- supervised training -------------------------------------------------------------------------------------------

    def progress_in_stage(self, index: int, report: SftReport) -> None:
        """Take in one step of supervised training: it makes no policy version, but it is recorded and counted."""
        before = self.progress
        self.state.check()
        self.state.progress = Progress(before.version, index, report.stage_step, False, before.steps_offset)
        result = StepResult(before.version, index, report.stage_step, report.metrics, report.phases, time.time())
        if report.tokens:
            read = report.first, len(report.tokens), digest(report.tokens)
            self._redone.check(index, report.stage_step, read)
            result = replace(result, documents=read, rows=rows_of(report.places))
        self._record(self.telemetry.step(result))
        self._finite.take(report.stage_step, report.metrics.get("grad_norm"))

    # -- evaluations and collections -----------------------------------------------------------------------------------

    def evaluations(self) -> dict[str, Evaluation]:
        """The evaluations that have ended, by name."""
        return {n: e for n, e in list(self._endings.by_name.items()) if isinstance(e, Evaluation)}

    def evaluate(self, index: int, name: str, step: int, asked: Benchmark) -> None:
        """Begin evaluation ``name`` of version ``step``, unless it has been made; what is already under way of it goes on."""
        training = self.config.training(index) or self.config.learner
        sampling = asked.sampled(training.sampling)
        feeding = self.sources.feeding(
            asked.data, asked.k, sampling, purpose="eval", collection=name, judge=asked.rewarder
        )

        def finish(c: Collection, groups: Any, lost: Any) -> Ending:
            return score(asked, c.name, c.step, c.stage, groups, lost, time.time())

        self._collect(Collection(name, step, index, training.deadline, time.time()), finish, feeding, asked.questions)

    def collect(
        self, index: int, name: str, data: str, questions: int, samples: int, sampling: SamplingTable, finish: Finish
    ) -> None:
        """Have ``samples`` answers to each of the first ``questions`` rows sampled and judged for ``finish``, unless it has been done."""
        feeding = self.sources.feeding(data, samples, sampling, purpose="collect", collection=name)
        deadline = self.config.learner.deadline
        self._collect(Collection(name, self.progress.version, index, deadline, time.time()), finish, feeding, questions)

    def _collect(self, collection: Collection, finish: Finish, feeding: Feeding, questions: int) -> None:
        if collection.name not in self._endings.by_name:
            self.planning.collect(collection, finish, feeding, questions, self.progress.version)

    def wait_collections(self) -> bool:
        """Wait for all collections under way; False when the learner is to stop."""
        with self.telemetry.phase("collect"):
            while self.planning.pending():
                if self.stop:
                    return False
                self._road.check()
                self.planning.wait(0.1)
                self._follow_asked()
        return True

    def artefact(self, name: str) -> Artefact | None:
        """What stage or collection ``name`` has made, since the checkpoint that this learner began with."""
        found = self._endings.by_name.get(name)
        return found if isinstance(found, Artefact) else None

    def made(self, artefact: Artefact) -> None:
        """Record what a stage has made by itself, without collecting anything."""

        def write() -> None:
            self._steps.send(self.run.topics.steps, f"{artefact.TYPE}/{artefact.name}".encode(), encode(artefact))
            self._steps.flush()

        self.planning.call(write)  # the planner's thread is the one that writes between steps
        self._endings.take(artefact)

    # -- models ---------------------------------------------------------------------------------------------------------

    def model_named(self, model: str) -> str:
        """The location of ``model``: for a stage's name, the checkpoint that the stage left; for a directory beside the run file, its path; anything
        else is returned as it is."""
        for index, stage in enumerate(self.config.stages):
            if stage.name == model:
                return str((self.checkpoints.directory / self.kept_name(index)).relative_to(self.run.directory))
        beside = self.run.file.resolve(model)
        return str(beside) if beside.is_dir() else model

    def kept_name(self, index: int) -> str:
        """The name of the checkpoint that stage ``index`` leaves for good."""
        return f"stage-{index}-{self.config.stages[index].name}"

    # -- ends ----------------------------------------------------------------------------------------------------------

    def save(self, keep: int, name: str = "", extra: Mapping[str, Any] | None = None) -> Path:
        with self.telemetry.phase("checkpoint"):
            return self.state.save(self.checkpoints, keep, name, extra)

    def close_stage(self, index: int) -> None:
        """End the stage durably, in the log and in a checkpoint. All that was planned must have been taken (``end_plan``)."""
        with self.shifts.shift():
            requested = [asked.name for asked in find(self.run.directory, ())]
            self.take(self.planning.close_stage(index, requested))
        mine = self.config.stages[index]
        wanted = mine.keep_model or any(stage.model == mine.name for stage in self.config.stages)
        if wanted and not (self.checkpoints.directory / self.kept_name(index)).exists():
            self.save(self.config.learner.keep_checkpoints, name=self.kept_name(index))
        self.save(self.config.learner.keep_checkpoints)

    def replace_weights(self, index: int, where: str) -> None:
        """Make the weights in ``where`` (a directory of the run, or a model id) the next policy version."""
        with self.shifts.shift():
            self.take(self.planning.order_weights(index, where))
        self.publish()

    # -- what is edited or asked for meanwhile -------------------------------------------------------------------------

    def _follow_mix(self) -> None:
        """Take up the reward mix of an edited run file: the groups that are fed from now on carry it, and those that are out no longer
        wait for a rewarder that has left it."""
        try:
            edited = self._file.reread()
            if edited is None:
                return
            mix = edited.table("run", RunTable).rewards
            waited_for = LearnerConfig(edited).judging(mix) | judges(self.run.directory)
        except RunFileError as error:
            log_.warning("the run file was edited, and the old mix stays: %s", error)
            return
        self._file = edited
        if mix != self.sources.mix and self._plan is not None:
            log_.info("groups are from now on fed with the mix %s", mix)
            old, self.sources.mix = self.sources.mix, mix
            self.begin(self._plan.mixed(old, mix))
            self.planning.release(frozenset(old) - waited_for)

    def _follow_asked(self) -> None:
        """Begin the evaluations that were requested in the meantime."""
        for asked in find(self.run.directory, self._asked):
            self._asked.add(asked.name)
            if asked.name in self._endings.by_name:  # a learner was killed before it removed the request
                place(self.run.directory, asked.name).unlink(missing_ok=True)
                continue
            try:
                self.evaluate(self.progress.stage, asked.name, self.progress.version, asked)
            except (DataError, RunFileError) as error:
                log_.warning("evaluation %s: %s", asked.name, error)
                place(self.run.directory, asked.name).unlink(missing_ok=True)
