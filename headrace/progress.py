"""Collects what the live view shows: from the log's ``steps`` topic, from the daemons' metrics, from the supervisor."""

from __future__ import annotations

import time
from collections.abc import Callable

from broker.errors import HeadraceError
from broker.log import Log
from broker.messages import Evaluation, Manifest, StepResult
from broker.run import Run
from headrace.records import read
from learner.config import LearnerConfig, RlStage, SftStage
from monitoring.daemon import registrations
from monitoring.scrape import scrape
from monitoring.view import DaemonView, RunView

SCRAPE_SECONDS = 1.0  # for all daemons together
GENERATED, TRAINED = "headrace_generated_tokens_total", "headrace_tokens_total"


class Progress:
    """Follows a run; ``refresh`` gives its state now. Reading disturbs nobody: it is in no consumer group."""

    def __init__(self, run: Run, config: LearnerConfig, daemons: Callable[[], list[DaemonView]]) -> None:
        self._run, self._config, self._daemons = run, config, daemons
        self._log: Log = run.open_log()
        self._reader = self._log.reader(run.topics.steps)
        self.view = RunView(run.table.name, stages=len(config.stages))
        self._started = time.monotonic()
        self._counts: dict[str, tuple[float, float]] = {}

    def refresh(self) -> RunView:
        """Read what is new. An unreachable log leaves the view as it was."""
        view = self.view
        try:
            while records := self._reader.poll(512, 0.0):
                for record in records:
                    self._take(read(record))
            self._queues()
            view.notes = []
        except HeadraceError as error:
            view.notes = [f"waiting for the log: {error}"]
        view.elapsed = time.monotonic() - self._started
        view.daemons = self._daemons()
        self._rates()
        return view

    def _take(self, message: object) -> None:
        view = self.view
        if isinstance(message, StepResult):
            self._stage(message.stage)
            view.step, view.version = message.stage_step, message.step
            view.metrics = dict(message.metrics)
            if "reward_mean" in message.metrics:
                view.rewards.append(message.metrics["reward_mean"])
        elif isinstance(message, Evaluation):
            view.evaluations.append((message.name, message.pass_at_1, *message.pass_at_1_interval))
        elif isinstance(message, Manifest):
            self._stage(min(message.stage + (message.kind == "close"), len(self._config.stages) - 1))

    def _stage(self, index: int) -> None:
        view, stage = self.view, self._config.stages[index]
        if view.stage_number != index or view.stage == "starting":
            view.stage_number, view.stage, view.step, view.metrics = index, f"{stage.name} ({stage.kind})", 0, {}
            view.steps = stage.steps if isinstance(stage, RlStage | SftStage) else 0

    def _queues(self) -> None:
        topics, groups = self._run.topics, self._log.groups()
        actors, rewarders = topics.group("actors"), topics.group("rewarder.")
        waiting = {"prompts": self._log.lag(actors, topics.prompts)} if actors in groups else {}
        for group in groups:
            if group.startswith(rewarders):
                waiting[f"for {group.removeprefix(rewarders)}"] = self._log.lag(group, topics.trajectories)
        self.view.queues = waiting

    def _rates(self) -> None:
        rates = {GENERATED: 0.0, TRAINED: 0.0}
        now = time.monotonic()
        for daemon in registrations(self._run.directory):
            if daemon.role == "rewarder":
                continue
            if time.monotonic() - now > SCRAPE_SECONDS:
                break  # daemons that do not answer must not hold up the one that looks after them
            for name, value in scrape(daemon.metrics, 0.3).items():
                if name in rates:
                    then, before = self._counts.get(f"{daemon.pid}/{name}", (now, value))
                    if now > then:
                        rates[name] += (value - before) / (now - then)
                    if now - then > 3.0 or now == then:
                        self._counts[f"{daemon.pid}/{name}"] = (now, value)
        self.view.generated_per_second, self.view.trained_per_second = rates[GENERATED], rates[TRAINED]

    def close(self) -> None:
        self._reader.close()
        self._log.close()
