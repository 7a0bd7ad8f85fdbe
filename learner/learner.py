"""What a stage may do: wait for planned steps, take them, evaluate and collect, save, close. ``learner.opening`` recovers and wires it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from broker.errors import CheckpointError, LogError, RunFault, RunFileError
from broker.log import Producer
from broker.messages import Artefact, Ending, Evaluation, Manifest, Sampling, StepResult, encode
from broker.run import Run
from broker.runfile import RunTable
from broker.spelling import nearest
from learner.config import LearnerConfig
from learner.data.registry import open_documents, open_prompts
from learner.data.source import DocumentSource
from learner.planning.collect import Collection, Finish
from learner.planning.feed import Ask, Feeding, Schedule
from learner.planning.planner import Planned, StagePlan
from learner.planning.requests import find, place
from learner.planning.scores import score
from learner.planning.thread import Planning
from learner.serving.shifts import Shifts
from learner.tables import Benchmark, SamplingTable, SourceTable
from learner.telemetry import Telemetry
from learner.training.checkpoint import Checkpoints, Progress
from learner.training.executor import execute
from learner.training.sft import SftReport
from learner.training.state import LearnerState
from monitoring.daemon import Stop

log_ = logging.getLogger("learner")
SFT_RECORD_EVERY = 10  # steps of supervised training between two records in the log
READY_SECONDS = 0.02  # between two looks whether a shift's steps are planned
HOPELESS_STEPS = 3  # manifests one after the other that cannot be executed end the run


class Road(Protocol):
    """The weight road's near end, as the learner uses it."""

    @property
    def published(self) -> int:
        """The newest version that receivers can have."""

    def publish(self, version: int) -> None:
        """Hand the policy over as ``version``; returns at once."""

    def settled(self, seconds: float) -> bool:
        """Wait up to so many seconds for the push under way; whether it has ended."""


class Endings:
    """The collections that have ended since the checkpoint that this learner began with, by name."""

    def __init__(self, run: Run, telemetry: Telemetry, known: list[Ending]) -> None:
        self._run, self._telemetry = run, telemetry
        self.by_name: dict[str, Ending] = {ending.name: ending for ending in known}

    def take(self, ending: Ending) -> None:
        """Called where the planner lives."""
        self.by_name[ending.name] = ending
        place(self._run.directory, ending.name).unlink(missing_ok=True)
        if isinstance(ending, Evaluation):
            self._telemetry.evaluation(ending)


class Learner:
    """``resumed_step`` is the stage's step that a restart began at, ``unfinished`` are collections that a learner before this one began and
    did not end, ``extra`` is what a supervised stage kept in the checkpoint."""

    def __init__(
        self,
        run: Run,
        config: LearnerConfig,
        stop: Stop,
        telemetry: Telemetry,
        state: LearnerState,
        checkpoints: Checkpoints,
        planning: Planning,
        shifts: Shifts,
        road: Road,
        steps: Producer,
        results: Producer,
        endings: Endings,
        unfinished: set[str],
        eras: Mapping[str, tuple[Any, ...]],
        cursor: Mapping[str, int],
        extra: Mapping[str, Any],
        resumed_step: int,
        restore: Callable[[int], None],
    ) -> None:
        self.run, self.config, self.stop, self.telemetry = run, config, stop, telemetry
        self.state, self.checkpoints, self.planning, self.shifts = state, checkpoints, planning, shifts
        self.unfinished, self.extra, self.resumed_step = unfinished, extra, resumed_step
        self._road, self._steps, self._results, self._endings = road, steps, results, endings
        self._eras, self._cursor, self._restore = eras, cursor, restore
        self._schedules: dict[tuple[str, bool], Schedule] = {}
        self._plan: StagePlan | None = None
        self._mix = run.table.rewards
        self._file = run.file
        self._asked: set[str] = set()
        self._set_aside = 0  # manifests that could not be executed, one after the other

    @property
    def progress(self) -> Progress:
        return self.state.progress

    # -- reinforcement -------------------------------------------------------------------------------------------------

    def stage_plan(self, index: int, weights: Mapping[str, float], steps: int) -> StagePlan:
        """What the planner needs to plan ``steps`` of stage ``index`` on prompts of these sources."""
        training = self.state.training(index)
        self.telemetry.limits(training.max_lag, training.credits)
        begun = self.progress.stage_step if self.progress.stage == index and not self.progress.closed else 0
        feedings = tuple(
            Feeding(self.schedule(name, True), self._ask(name, training.group_size, training.sampling), weight)
            for name, weight in weights.items()
        )
        return StagePlan(index, training, feedings, self.progress.version + steps - begun)

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
        """Wait for the next planned step; None when the learner is to stop. A shift on shared devices begins once all its steps are
        planned, and goes on as long as another is."""
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
                self._follow_mix()
                self._follow_asked()
                if self.shifts.colocated and not self.planning.is_ready():
                    self.planning.wait(READY_SECONDS)
                elif (planned := self.planning.next(timeout=0.2)) is not None:
                    return planned
        return None

    def take(self, planned: Planned) -> StepResult | None:
        """Execute a planned manifest: the new version is recorded and published, its credits come back.

        One that cannot be executed is set aside in the log, and the next version is the policy as it was.
        """
        manifest = planned.manifest
        try:
            result = execute(self.state, manifest, planned.groups, planned.offset)
        except (CheckpointError, LogError, OSError):
            raise
        except (
            Exception
        ) as error:  # a loss of one's own, a model's limit, memory: whatever it is, it must not end the run
            if manifest.kind != "step" or self.state.placement.world > 1:
                raise
            self._put_aside(manifest, error)
            result = None
        else:
            self._set_aside = 0
        self.planning.executed(manifest)
        if manifest.kind == "step" and self.progress.version % self.config.learner.publish_every == 0:
            self.publish()
        if result is not None:
            result = self.telemetry.step(result)
            self.telemetry.trained(planned)
            self.record(result)
        return result

    def _put_aside(self, manifest: Manifest, error: Exception) -> None:
        """Say in the log that the step trains nothing, and bring the state there: whatever the failure has left of it is given up."""
        step, why = manifest.step, f"{type(error).__name__}: {error}"[:1000]
        log_.error("step %d cannot be executed and is set aside: %s", step, why, exc_info=error)
        mark = Manifest(step, manifest.stage, "set_aside", why=why, created=time.time())
        self._steps.send(self.run.topics.steps, f"set_aside/{step}".encode(), encode(mark))
        self._steps.flush()
        self._set_aside += 1
        if self._set_aside >= HOPELESS_STEPS:
            raise RunFault(
                f"{self._set_aside} steps one after the other could not be executed, the last one: {why}"
            ) from error
        self._restore(step)

    def publish(self) -> None:
        if not self.shifts.under_way:  # while the engines rest, it is done at the shift's end
            self._road.publish(self.progress.version)

    # -- supervised training -------------------------------------------------------------------------------------------

    def progress_in_stage(self, index: int, report: SftReport) -> None:
        """Take in one step of supervised training: it makes no policy version, but it is recorded and counted."""
        before = self.progress
        self.state.progress = Progress(before.version, index, report.stage_step, False, before.steps_offset)
        result = StepResult(before.version, index, report.stage_step, report.metrics, report.phases, time.time())
        self.telemetry.step(result)
        if report.stage_step % SFT_RECORD_EVERY == 0 or report.last:
            self.record(result)

    def documents(self, name: str) -> DocumentSource:
        """Source ``name`` of ``[data]``, or what an earlier stage of that name collected. Raises RunFileError."""
        table = self.config.data.get(name)
        if table is not None:
            return open_documents(name, table, self.run.file)
        made = self.run.directory / "artefacts" / f"{name}.jsonl"
        if name in {stage.name for stage in self.config.stages} and made.exists():
            return open_documents(name, SourceTable(path=str(made)), self.run.file)
        raise RunFileError(f"[data] has no {name!r}{nearest(name, list(self.config.data))}")

    # -- evaluations and collections -----------------------------------------------------------------------------------

    def evaluations(self) -> dict[str, Evaluation]:
        """The evaluations that have ended, by name."""
        return {n: e for n, e in list(self._endings.by_name.items()) if isinstance(e, Evaluation)}

    def evaluate(self, index: int, name: str, step: int, asked: Benchmark) -> None:
        """Begin evaluation ``name`` of version ``step``, unless it has been made; what is already under way of it goes on."""
        training = self.config.training(index) or self.config.learner
        ask = self._ask(asked.data, asked.k, asked.sampling or training.sampling, purpose="eval", collection=name)

        def finish(c: Collection, groups: Any, lost: Any) -> Ending:
            return score(asked, c.name, c.step, c.stage, groups, lost, time.time())

        self._collect(
            Collection(name, step, index, training.deadline, time.time()), finish, asked.data, ask, asked.questions
        )

    def collect(
        self, index: int, name: str, data: str, questions: int, samples: int, sampling: SamplingTable, finish: Finish
    ) -> None:
        """Have ``samples`` answers to each of the first ``questions`` rows sampled and judged for ``finish``, unless it has been done."""
        ask = self._ask(data, samples, sampling, purpose="collect", collection=name)
        deadline = self.config.learner.deadline
        self._collect(
            Collection(name, self.progress.version, index, deadline, time.time()), finish, data, ask, questions
        )

    def _collect(self, collection: Collection, finish: Finish, data: str, ask: Ask, questions: int) -> None:
        if collection.name not in self._endings.by_name:
            feeding = Feeding(self.schedule(data, False), ask)
            self.planning.collect(collection, finish, feeding, questions, self.progress.version)

    def wait_collections(self) -> bool:
        """Wait for all collections under way; False when the learner is to stop."""
        while self.planning.pending():
            if self.stop:
                return False
            self.planning.wait(0.1)
            self._follow_asked()
        return True

    def artefact(self, name: str) -> Artefact | None:
        """What collection ``name`` of this stage has made, since the checkpoint that this learner began with."""
        found = self._endings.by_name.get(name)
        return found if isinstance(found, Artefact) else None

    # -- sources and models --------------------------------------------------------------------------------------------

    def schedule(self, name: str, shuffle: bool) -> Schedule:
        """The order of data source ``name``. Raises RunFileError if the run file has none of that name."""
        key = (name, shuffle)
        if key not in self._schedules:
            table = self.config.data.get(name)
            if table is None:
                raise RunFileError(f"[data] has no {name!r}{nearest(name, list(self.config.data))}")
            source = open_prompts(name, table, self.run.file)
            eras = (self._eras.get(name, ()), self._cursor.get(name, 0)) if shuffle else ((), 0)
            self._schedules[key] = Schedule(name, source, self.run.table.seed, shuffle, *eras)
        return self._schedules[key]

    def _ask(self, data: str, size: int, sampling: SamplingTable, purpose: str = "train", collection: str = "") -> Ask:
        table = self.config.data.get(data)
        mix = self._mix if table is None or table.rewards is None else table.rewards
        environment, chat = (table.environment, table.chat) if table is not None else ("", {})
        return Ask(size, mix, sampling_of(sampling), purpose, collection, environment, chat)

    def model_named(self, model: str) -> str:
        """Where ``model`` lies: a stage's name stands for the checkpoint that the stage left, anything else for itself."""
        for index, stage in enumerate(self.config.stages):
            if stage.name == model:
                return str((self.checkpoints.directory / self.kept_name(index)).relative_to(self.run.directory))
        return model

    def kept_name(self, index: int) -> str:
        """The name of the checkpoint that stage ``index`` leaves for good."""
        return f"stage-{index}-{self.config.stages[index].name}"

    # -- ends ----------------------------------------------------------------------------------------------------------

    def record(self, result: StepResult) -> None:
        """Write what a step gave. Metrics may be written twice after a redo; the last holds."""
        self._results.send(self.run.topics.steps, f"result/{result.step}".encode(), encode(result))
        self._results.flush()

    def save(self, keep: int, name: str = "", extra: Mapping[str, Any] | None = None) -> Path:
        with self.telemetry.phase("checkpoint"):
            return self.state.save(self.checkpoints, keep, name, extra)

    def close_stage(self, index: int) -> None:
        """End the stage durably, in the log and in a checkpoint. All that was planned must have been taken (``end_plan``)."""
        with self.shifts.shift():
            self.take(self.planning.close_stage(index))
        wanted = any(stage.model == self.config.stages[index].name for stage in self.config.stages)
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
        except RunFileError as error:
            log_.warning("the run file was edited, and the old mix stays: %s", error)
            return
        self._file = edited
        if mix != self._mix and self._plan is not None:
            log_.info("groups are from now on fed with the mix %s", mix)
            old, self._mix = self._mix, mix
            feedings = tuple(
                replace(f, ask=replace(f.ask, rewards=mix)) if f.ask.rewards == old else f for f in self._plan.feedings
            )
            self.begin(replace(self._plan, feedings=feedings))
            self.planning.release(frozenset(old) - frozenset(mix))

    def _follow_asked(self) -> None:
        """Begin the evaluations that somebody has asked for meanwhile."""
        for asked in find(self.run.directory, self._asked):
            self._asked.add(asked.name)
            if (
                asked.name in self._endings.by_name
            ):  # a learner was killed between its answer and the removal of the request
                place(self.run.directory, asked.name).unlink(missing_ok=True)
                continue
            try:
                self.evaluate(self.progress.stage, asked.name, self.progress.version, asked)
            except RunFileError as error:
                log_.warning("evaluation %s: %s", asked.name, error)
                place(self.run.directory, asked.name).unlink(missing_ok=True)


def sampling_of(table: SamplingTable) -> Sampling:
    return Sampling(table.temperature, table.top_p, table.max_new_tokens, table.stop)
