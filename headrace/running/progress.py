"""Collects what the live view shows: from the log's ``steps`` topic, from the daemons' metrics, from the supervisor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from broker.errors import HeadraceError
from broker.log import Log, Record
from broker.messages import Evaluation, Manifest, StepResult
from broker.run import Run
from headrace.reading.heads import Head
from headrace.reading.history import History, whole
from headrace.running.daemon_metrics import Pulse
from headrace.running.groups import groups_in_force
from headrace.running.view_details import Details
from headrace.running.waits import waits
from learner.config import LearnerConfig
from monitoring.view import DaemonView, RunView, StepView

HISTORY = 20  # number of steps that are kept for display
RECENT = 2000  # number of records of the steps topic to read at the start


class Progress:
    """Follows a run; ``refresh`` gives its state now. Reading disturbs nobody: it is in no consumer group."""

    def __init__(self, run: Run, config: LearnerConfig, daemons: Callable[[], list[DaemonView]]) -> None:
        self._run, self._config, self._daemons = run, config, daemons
        self._log: Log = run.open_log()
        self._reader = self._log.reader(run.topics.steps, {0: self._start()})
        self.view = RunView(run.table.name, stages=len(config.stages))
        self._started = time.monotonic()
        self._pulse, self._details = Pulse(run.directory), Details(run, self._log)
        self._history = History(keep=HISTORY)
        self._trained: Manifest | None = None

    def _start(self) -> int:
        """Where to begin to read: what has been long ago is not shown, and a run may have gone on for weeks."""
        try:
            ends, begins = self._log.ends(self._run.topics.steps), self._log.begins(self._run.topics.steps)
        except HeadraceError:  # it is read from where it begins, once it is there
            return 0
        return max(begins[0], ends[0] - RECENT)

    def refresh(self, *shown: str) -> RunView:
        """Read what is new, and what the views ``shown`` need beyond the overview. An unreachable log leaves all as it was."""
        view = self.view
        try:
            while records := self._reader.poll(512, 0.0):
                for record in records:
                    self._take(record)
            self._list_steps()
            self._queues()
            if "samples" in shown:
                self._find_trained()
            self._details.fill(view, shown, self._trained)
            view.notes = []
        except HeadraceError as error:
            view.notes = [f"waiting for the log: {error}"]
        view.elapsed = time.monotonic() - self._started
        view.daemons = self._pulse.take(self._daemons(), everyone="daemons" in shown)
        view.notes += waits(self._pulse.scraped, time.time())
        rates = {role: sum(d.rate or 0.0 for d in view.daemons if d.role == role) for role in ("actor", "learner")}
        view.generated_per_second, view.trained_per_second = rates["actor"], rates["learner"]
        return view

    def _take(self, record: Record) -> None:
        view, message = self.view, self._history.take(record)
        if isinstance(message, StepResult):
            self._stage(message.stage)
            view.step, view.version = message.stage_step, message.step
            view.metrics = dict(message.metrics)
            if "reward_mean" in message.metrics:
                view.rewards.append(message.metrics["reward_mean"])
        elif isinstance(message, Evaluation):
            name = f"{message.name} ({message.doubt})" if message.doubt else message.name
            value = message.pass_at_1 if message.questions else math.nan
            view.evaluations.append((name, value, *message.pass_at_1_interval))
        elif isinstance(message, Head):
            follows = message.kind == "close" and message.stage + 1 < len(self._config.stages)
            self._stage(message.stage + follows)

    def _list_steps(self) -> None:
        results = [done.result for done in self._history.executions()]
        self.view.history = [StepView(r.step, self._name(r.stage), r.stage_step, dict(r.metrics)) for r in results]

    def _find_trained(self) -> None:
        """The manifest of the newest step that was executed."""
        heads = [head for head in self._history.steps if self._history.executed(head) is not None]
        if heads and (self._trained is None or self._trained.step != heads[-1].step):
            self._trained = next(whole(self._log, self._run.topics, heads[-1:]), None)

    def _stage(self, index: int) -> None:
        view = self.view
        if view.stage_number == index and view.stage != "starting":
            return
        stage = next(iter(self._config.stages[index : index + 1]), None)
        view.stage_number, view.stage, view.step, view.metrics = index, self._name(index), 0, {}
        if stage is not None:
            view.stage += f" ({stage.kind})"
        view.steps = stage.total_steps() if stage is not None else 0

    def _name(self, index: int) -> str:
        """The run file may have fewer stages than the log: it was edited since."""
        stages = self._config.stages
        return stages[index].name if index < len(stages) else f"stage {index}"

    def _queues(self) -> None:
        topics, groups = self._run.topics, groups_in_force(self._run, self._log)
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
