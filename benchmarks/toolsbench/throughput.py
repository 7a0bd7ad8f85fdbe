"""How much an actor samples whose environment takes its time: a real log, engine, and environment process, and a learner that is infinitely fast.

The learner is its credits alone: no more than ``(max_lag + 1) * groups`` groups are outstanding, and whenever ``groups`` of them are complete they
are a step, and their credits come back. So nothing but sampling and the environment takes time, and what an environment costs is not hidden
behind training.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry

from actors.config import ActorsTable, EnvironmentTable
from actors.intake import Intake
from actors.local.engine import LocalEngine
from actors.rooms import Rooms
from actors.worker import ActorWorker
from broker.log import Log, Reader
from broker.messages import ChatMessage, Prompt, Sampling, Trajectory, decode, encode
from broker.open import open_log
from broker.topics import Topics
from learner.model.load import load_model, save_model
from monitoring.metrics import ActorMetrics, BrokerMetrics, SystemMetrics

HERE = Path(__file__).resolve().parent
TINY = HERE.parents[1] / "recipes" / "tiny_model"
SIZE, SLOTS, CONTEXT = 8, 32, 640
STOP = ("0", "1")
SAMPLING = Sampling(max_new_tokens=160, max_turns=4, stop=STOP)


@dataclass(slots=True)
class Credits:
    """The learner's side of the log."""

    log: Log
    topics: Topics
    groups: int
    max_lag: int
    reader: Reader
    tokens: int = 0
    steps: int = 0
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _outstanding: int = 0
    _came: Counter[str] = field(default_factory=Counter)
    _complete: int = 0

    def turn(self) -> None:
        """Feed what there are credits for; take what has come."""
        producer = self.log.producer()
        while self._outstanding < (self.max_lag + 1) * self.groups:
            name = f"d-{next(self._numbers)}@0"
            prompt = Prompt(
                name, (ChatMessage("user", "Guess: 0 to 9"),), SIZE, sampling=SAMPLING, environment="waiting"
            )
            producer.send(self.topics.prompts, name.encode(), encode(prompt))
            self._outstanding += 1
        producer.flush()
        producer.close()
        for record in self.reader.poll(512, 0.0):
            sample = decode(record.value)
            assert isinstance(sample, Trajectory)
            self.tokens += sample.response_tokens
            self._came[sample.group_id] += 1
            self._complete += self._came[sample.group_id] == SIZE
        while self._complete >= self.groups:
            self._complete -= self.groups
            self._outstanding -= self.groups
            self.steps += 1


@dataclass(frozen=True, slots=True)
class Measured:
    """Sampled tokens a second and a CPU second of the actor, seconds a step, and the share of the engine's slots that were taken."""

    tokens: float
    worked: float
    step: float
    taken: float

    @property
    def undisturbed(self) -> float:
        """Tokens a second of an actor with a core of its own: what it does while it works, for the share of its slots that have work."""
        return self.worked * self.taken


def model(directory: Path) -> Path:
    """The tiny model with random weights, spread so that replies differ in length."""
    torch.set_num_threads(1)
    made = load_model(str(TINY), init="random", seed=7)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    save_model(made, str(TINY), directory)
    return directory


def measure(directory: Path, path: Path, longest: float, *, steps: int, warm_up: int, groups: int = 4, max_lag: int = 8) -> Measured:  # fmt: skip
    """``steps`` steps behind ``warm_up`` ones, with an environment that takes 0 to ``longest`` seconds for each answer."""
    from safetensors.torch import load_file

    directory.mkdir(parents=True)
    topics, registry = Topics("bench", partitions=1), CollectorRegistry()
    use = f"{HERE / 'waiting.py'}:Waiting"
    table = EnvironmentTable(use=use, timeout=60.0, processes=1, threads=512, longest=longest)  # type: ignore[call-arg]
    with ExitStack() as stack:
        log = open_log(f"sqlite://{directory}/log")
        stack.callback(log.close)
        log.create(topics.specs())
        engine = LocalEngine(str(path), slots=SLOTS, context=CONTEXT, seed=1)
        stack.callback(engine.close)
        engine.apply(0, load_file(path / "model.safetensors"))
        metrics = ActorMetrics(registry), BrokerMetrics(registry), SystemMetrics(registry, "actor")
        rooms = Rooms({"waiting": table}, HERE)
        worker = ActorWorker("a", Intake("a", log, topics), engine, rooms, ActorsTable(slots=SLOTS), *metrics)
        stack.callback(worker.close)
        learner = Credits(log, topics, groups, max_lag, log.reader(topics.trajectories))
        stack.callback(learner.reader.close)
        begun, cpu, tokens, taken = 0.0, 0.0, 0, []
        while learner.steps < warm_up + steps:
            learner.turn()
            worker.round()
            if learner.steps >= warm_up:
                if not begun:
                    begun, cpu, tokens = time.monotonic(), time.process_time(), learner.tokens
                taken.append(1 - max(0, engine.room()) / SLOTS)
        seconds, worked, tokens = time.monotonic() - begun, time.process_time() - cpu, learner.tokens - tokens
        return Measured(tokens / seconds, tokens / worked, seconds / steps, statistics.fmean(taken))
