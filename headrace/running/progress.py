"""Collects what the live view shows: from the log's ``steps`` topic, from the daemons' metrics, from the supervisor."""

from __future__ import annotations

import time
from collections.abc import Callable

from broker.errors import HeadraceError
from broker.log import Log
from broker.messages import Evaluation, Manifest, StepResult
from broker.run import Run
from headrace.reading.records import read
from headrace.running.daemon_metrics import Pulse
from headrace.running.view_details import Details
from learner.config import LearnerConfig
from monitoring.view import DaemonView, RunView, StepView

HISTORY = 20  # steps that are kept to be shown


class Progress:
    """Follows a run; ``refresh`` gives its state now. Reading disturbs nobody: it is in no consumer group."""

    def __init__(self, run: Run, config: LearnerConfig, daemons: Callable[[], list[DaemonView]]) -> None:
        self._run, self._config, self._daemons = run, config, daemons
        self._log: Log = run.open_log()
        self._reader = self._log.reader(run.topics.steps)
        self.view = RunView(run.table.name, stages=len(config.stages))
        self._started = time.monotonic()
        self._pulse, self._details = Pulse(run.directory), Details(run, self._log)
        self._planned: dict[int, Manifest] = {}
        self._trained: Manifest | None = None

    def refresh(self, *shown: str) -> RunView:
        """Read what is new, and what the views ``shown`` need beyond the overview. An unreachable log leaves all as it was."""
        view = self.view
        try:
            while records := self._reader.poll(512, 0.0):
                for record in records:
                    self._take(read(record))
            self._queues()
            self._details.fill(view, shown, self._trained)
            view.notes = []
        except HeadraceError as error:
            view.notes = [f"waiting for the log: {error}"]
        view.elapsed = time.monotonic() - self._started
        view.daemons = self._pulse.take(self._daemons(), everyone="daemons" in shown)
        rates = {role: sum(d.rate or 0.0 for d in view.daemons if d.role == role) for role in ("actor", "learner")}
        view.generated_per_second, view.trained_per_second = rates["actor"], rates["learner"]
        return view

    def _take(self, message: object) -> None:
        view = self.view
        if isinstance(message, StepResult):
            self._stage(message.stage)
            view.step, view.version = message.stage_step, message.step
            view.metrics = dict(message.metrics)
            if "reward_mean" in message.metrics:
                view.rewards.append(message.metrics["reward_mean"])
            self._remember(message)
        elif isinstance(message, Evaluation):
            view.evaluations.append((message.name, message.pass_at_1, *message.pass_at_1_interval))
        elif isinstance(message, Manifest):
            self._stage(min(message.stage + (message.kind == "close"), len(self._config.stages) - 1))
            if message.kind == "step":
                self._planned[message.step] = message

    def _remember(self, result: StepResult) -> None:
        """Keep the step for the list of the last ones; after a redo the last result holds."""
        view = self.view
        stage = self._config.stages[result.stage].name
        step = StepView(result.step, stage, result.stage_step, dict(result.metrics))
        others = [s for s in view.history if (s.stage, s.step) != (step.stage, step.step)]
        view.history = [*others[1 - HISTORY :], step]
        self._trained = self._planned.get(result.step, self._trained)
        self._planned = {number: m for number, m in self._planned.items() if number > result.step}

    def _stage(self, index: int) -> None:
        view, stage = self.view, self._config.stages[index]
        if view.stage_number != index or view.stage == "starting":
            view.stage_number, view.stage, view.step, view.metrics = index, f"{stage.name} ({stage.kind})", 0, {}
            view.steps = stage.total_steps()

    def _queues(self) -> None:
        topics, groups = self._run.topics, self._log.groups()
        actors, rewarders = topics.group("actors"), topics.group("rewarder.")
        waiting = {"prompts": self._log.lag(actors, topics.prompts)} if actors in groups else {}
        for group in groups:
            if group.startswith(rewarders):
                waiting[f"for {group.removeprefix(rewarders)}"] = self._log.lag(group, topics.trajectories)
        self.view.queues = waiting

    def close(self) -> None:
        self._details.close()
        self._reader.close()
        self._log.close()
