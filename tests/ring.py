"""A whole ring in one process and on one thread: a real log, a real local engine, real judges, the learner's own planner and executor.

Only the processes are left out: weights go straight from the learner into the engine (``Direct``), and whoever waits turns the others by
hand (``round``). So a run takes seconds, and what happens when is decided by the test: ``kill`` drops the learner where it stands, as a
SIGKILL would, and the next ``run`` opens it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from prometheus_client import CollectorRegistry
from ringtools import SMALL

from actors.config import ActorsTable, environment_tables
from actors.intake import Intake
from actors.local.engine import LocalEngine
from actors.rooms import Rooms
from actors.worker import ActorWorker
from broker.messages import Evaluation, Manifest, Position, StepResult
from broker.run import Run
from headrace.reading.records import scan
from headrace.reading.verify import Audit, verify
from headrace.running.rundir import record
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.model.load import load_model, save_model
from learner.opening import open_learner
from learner.stages.running import run_stages
from learner.telemetry import Telemetry
from learner.training.state import LearnerState
from learner.training.trainer import state_sha256
from monitoring.daemon import Stop
from monitoring.metrics import ActorMetrics, BrokerMetrics, RewarderMetrics, SystemMetrics
from rewarders.config import in_run, rewarder_tables
from rewarders.worker import RewarderWorker

TINY = SMALL.parents[2] / "recipes" / "tiny_model"


class Killed(BaseException):
    """The learner is gone, in the middle of whatever it did."""


class Direct:
    """The weight road of one process: a version is in the engine when ``publish`` returns."""

    def __init__(self, ring: Ring, state: LearnerState) -> None:
        self._ring, self._state = ring, state
        self.published = 0

    def open(self) -> None: ...

    def publish(self, version: int) -> None:
        self._ring.take_weights(version, self._state)
        self._state.save_adapters(version)
        self.published = version

    def settled(self, seconds: float) -> bool:
        return True

    def check(self) -> None: ...

    def close(self) -> None: ...


class Ring:
    """``settings`` are those of ``--set``. ``watch`` is called between rounds and may raise ``Killed`` or set ``stop``."""

    def __init__(self, directory: Path, *settings: str, file: Path = SMALL) -> None:
        self.directory, self._settings, self._file = directory, [f"run.model={TINY}", *settings], file
        self.watch: Callable[[], None] = lambda: None
        self.on_publish: Callable[[int], None] = lambda version: None
        self.learner: Learner | None = None
        self.rounds = 0
        self._engine: LocalEngine | None = None
        self._workers: dict[str, Any] = {}
        self._open = ExitStack()  # what outlives a learner: the log of the others, their workers
        self._reopen()

    def _reopen(self) -> None:
        self.run_of = Run.open(self._file, self._settings, self.directory)
        record(self.run_of)
        self._log = self.run_of.open_log()
        self._open.callback(self._log.close)
        self._tables = rewarder_tables(self.run_of.file)

    # -- the others ----------------------------------------------------------------------------------------------------

    def take_weights(self, version: int, state: LearnerState) -> None:
        if self._engine is None:
            where = self.directory / "first"
            save_model(state.model, state.model_path, where)
            self._start_actor(where)
        assert self._engine is not None
        self._engine.apply(version, {name: tensor.clone() for name, tensor in state.weights()})
        self.on_publish(version)

    def _start_actor(self, model: Path) -> None:
        table, registry = self.run_of.file.table("actors", ActorsTable), CollectorRegistry()
        self._engine = LocalEngine(str(model), slots=table.slots, context=table.context_length, mode=table.update)
        self._open.callback(self._engine.close)
        self._workers["actor"] = ActorWorker(
            "actor-0", Intake("actor-0", self._log, self.run_of.topics), self._engine,
            Rooms(environment_tables(self.run_of.file), self.run_of.file.base, self.directory, "actor-0"), table,
            ActorMetrics(registry), BrokerMetrics(registry), SystemMetrics(registry, "actor"),
        )  # fmt: skip
        self._open.callback(self._workers["actor"].close)

    @property
    def serving(self) -> list[str]:
        """The actor and the rewarders that have begun."""
        return list(self._workers)

    def lose_actor(self) -> None:
        """The actor is gone with all that it had under way; another takes its place, with the newest weights."""
        assert self._engine is not None and self.learner is not None
        self._workers.pop("actor").close()
        version, state = self._engine.version, self.learner.state
        self._engine = None
        self.take_weights(version, state)

    def follow_file(self) -> None:
        """Take up the run file as it was edited, as the supervisor does."""
        self.run_of = Run.open(self._file, self._settings, self.directory)

    def start_rewarder(self, name: str) -> None:
        """Begin to serve ``[rewarders.NAME]`` of the run file as it is now."""
        table, registry = in_run(rewarder_tables(self.run_of.file)[name], self.directory), CollectorRegistry()
        self._workers[name] = RewarderWorker(
            f"{name}-0", name, self._log, self.run_of.topics, table, self.run_of.file.base,
            RewarderMetrics(registry, name), BrokerMetrics(registry), SystemMetrics(registry, "rewarder"), pace=0.002,
        )  # fmt: skip
        self._open.callback(self._workers[name].close)

    def round(self) -> None:
        """Everybody but the learner does a little."""
        self.rounds += 1
        for worker in list(self._workers.values()):
            worker.round()
        self.watch()

    # -- the learner ---------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Open the learner and run its stages; False where ``stop`` was set. Raises what the learner raises."""
        for name, table in self._tables.items():
            if name not in self._workers and not table.external:
                self.start_rewarder(name)
        self.stop = Stop()
        torch.set_num_threads(1)
        try:
            with ExitStack() as stack:
                run = Run.open(self._file, self._settings, self.directory)
                self.learner = open_learner(
                    run, LearnerConfig(run.file), self.stop, Telemetry(CollectorRegistry()), stack, "learner",
                    road=lambda run, state, *rest: Direct(self, state), idle=self.round,
                )  # fmt: skip
                finished = run_stages(self.learner)
                self.learner.state.close()
                return finished
        finally:
            self.learner = None

    def killed(self) -> None:
        """Run until something raises ``Killed``."""
        try:
            self.run()
        except Killed:
            return
        raise AssertionError("nothing killed it")

    def kill_at(self, version: int) -> None:
        """Kill the learner, once, when it holds ``version``, before it has recorded what the step gave."""

        def killing(published: int) -> None:
            if published == version:
                self.on_publish = lambda version: None
                raise Killed

        self.on_publish = killing

    def when(self, happened: Callable[[], bool], then: Callable[[], None]) -> None:
        """Do ``then`` once, between two rounds, as soon as it has ``happened``."""

        def watch() -> None:
            if happened():
                self.watch = lambda: None
                then()

        self.watch = watch

    def kill(self) -> None:
        raise Killed

    # -- what has come of it -------------------------------------------------------------------------------------------

    def records(self, topic: str, kind: type) -> list[Any]:
        return [m for _, m in scan(self._log, getattr(self.run_of.topics, topic)) if isinstance(m, kind)]

    def written(self, *topics: str) -> int:
        """How many entries these topics have together."""
        return sum(sum(self._log.ends(getattr(self.run_of.topics, topic)).values()) for topic in topics)

    def positions(self, topic: str) -> list[tuple[Position, Any]]:
        return [
            (record.position, m) for record, m in scan(self._log, getattr(self.run_of.topics, topic)) if m is not None
        ]

    def steps(self) -> list[Manifest]:
        return [m for m in self.records("steps", Manifest) if m.kind == "step"]

    def results(self) -> list[StepResult]:
        return self.records("steps", StepResult)

    def evaluations(self) -> list[Evaluation]:
        return self.records("steps", Evaluation)

    def verify(self) -> Audit:
        return verify(self._log, self.run_of.topics)

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        """Write what another client might write."""
        producer = self._log.producer()
        producer.send(getattr(self.run_of.topics, topic), key, value)
        producer.flush()
        producer.close()

    def newest_sha256(self) -> str:
        """Of the weights of the newest checkpoint."""
        last = sorted((self.directory / "checkpoints").glob("step-*"))[-1]
        return state_sha256(load_model(str(last)))

    def close(self) -> None:
        self._open.close()


@contextmanager
def ring(directory: Path, *settings: str, **options: Any) -> Iterator[Ring]:
    made = Ring(directory, *settings, **options)
    try:
        yield made
    finally:
        made.close()
