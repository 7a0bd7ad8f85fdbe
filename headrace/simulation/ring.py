"""A ring in simulated time: the real planner with simulated actors, rewarders and trainer. It trains nothing and
forecasts durations.

Planner, feed, join, gates, credits and manifests are the learner's own code. It simulates one RL stage, without
evaluations, checkpoints, shifts on shared devices, or contention for the machine's cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from statistics import fmean
from typing import Any

from broker.errors import RunFault
from broker.messages import ChatMessage, PlannerState, StepResult, encode
from broker.topics import Topics
from headrace.running.runfile import WholeRun
from headrace.simulation.clock import Busy, Clock
from headrace.simulation.memory import MemoryLog
from headrace.simulation.players import Actor, Judge
from headrace.simulation.rates import Rates
from learner.data.source import PromptRow
from learner.planning.collect import Collections
from learner.planning.feed import Ask, Feed, Feeding, Schedule
from learner.planning.join import Join
from learner.planning.planner import Planner
from learner.planning.plans import Planned, StagePlan
from learner.planning.thread import Planning
from learner.sources import sampling_of
from learner.stages.rl import RlStage
from learner.tables import Training

TURN_SECONDS = 0.01  # between something that happens and the planner's next look, as its thread gathers
BEAT_SECONDS = 1.0  # between two looks of the planner where nothing happens
LIMIT_SECONDS = 120.0  # of the processor, after which a simulation is given up
RESULT_METRICS = 40  # that a step's result has in the log, for its size


@dataclass(frozen=True)
class Endless:
    """A source of prompts of one length, without end."""

    characters: int
    size: int | None = None

    def row(self, number: int) -> PromptRow:
        return PromptRow((ChatMessage("user", "x" * self.characters),), "1")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was seen of ``steps`` steps after the first ones. ``waits`` is the share of its time in which a role had nothing to do: the learner,
    the actors (no sample under way), and each rewarder; ``staleness`` in versions, bytes a second by topic."""

    stage: str
    steps: int
    step_seconds: float
    waits: dict[str, float]
    staleness_mean: float
    staleness_max: int
    tokens_per_second: float
    written: dict[str, float]
    read: dict[str, float]
    dropped: dict[str, float] = field(default_factory=dict)
    """Groups that ended untrained, a step, by reason."""

    @property
    def slowest(self) -> str:
        """The role that waits least: the bottleneck."""
        return min(self.waits, key=lambda name: self.waits[name])


def forecast(whole: WholeRun, rates: Rates, stage: int | None = None, steps: int = 40, seed: int = 0) -> Forecast:
    """What ``steps`` steps of an RL stage (by default the first one) would be like. Raises RunFault if there is none, or nothing comes of it."""
    found = [i for i, s in enumerate(whole.learner.stages) if isinstance(s, RlStage)]
    if not found or (stage is not None and stage not in found):
        raise RunFault(
            "only an RL stage can be simulated, and there is none" + (f" of number {stage}" if found else "")
        )
    index = found[0] if stage is None else stage
    return Simulation(whole, index, rates, steps, seed).run()


class Simulation:
    """``steps`` of stage ``index``. ``log`` is what the ring has written."""

    def __init__(self, whole: WholeRun, index: int, rates: Rates, steps: int, seed: int) -> None:
        training = whole.learner.training(index)
        assert training is not None
        self._training: Training = training
        self._index, self._rates, self._steps = index, rates, steps
        self._whole, self._seed = whole, seed
        self._clock = Clock()
        self.log = MemoryLog(self._clock)
        self.topics = Topics(whole.run.name, whole.broker.partitions)
        self.log.create(self.topics.specs())
        self._planning, self._planner = self._plan()
        self._actors = [
            Actor(f"actor-{n}", self._clock, self.log, self.topics, whole.actors, rates, Random(f"{seed}/{n}"))
            for n in range(whole.actors.count)
        ]
        workers = {
            name: whole.rewarders[name].workers for name in {n for _, mix in self._mixes().values() for n in mix}
        }
        self._judges = {
            name: [Judge(name, n, self._clock, self.log, self.topics, rates) for n in range(count)]
            for name, count in workers.items()
        }
        self._learner = Busy(self._clock)
        self._training_now = False
        self._due = set[str]()
        self._ended = 0.0
        self._taken: list[Planned] = []
        self._ends: list[float] = []
        self._warm = training.max_lag + 2

    def _mixes(self) -> dict[str, tuple[float, dict[str, float]]]:
        """Weight and reward mix of each source that the stage asks first."""
        stage = self._whole.learner.stages[self._index]
        assert isinstance(stage, RlStage)
        first = stage.phases(self._training.sampling)[0]
        found = {}
        for name, weight in first.weights.items():
            own = first.rewards.get(name, self._whole.learner.data[name].rewards)
            found[name] = weight, dict(self._whole.run.rewards if own is None else own)
        return found

    def _plan(self) -> tuple[Planning, Planner]:
        log, topics, training = self.log, self.topics, self._training
        feed = Feed(log.producer(), topics.prompts, topics.partitions, {}, None, topics.deadletters, self._clock)
        join = Join(log, topics, 2, PlannerState(), "simulated")
        self._version = 0
        planner = Planner(join, feed, log.producer(), topics.steps, 0, 0.0, {}, lambda: self._version)
        planning = Planning(
            planner, Collections(join, log.producer(), topics.steps), lambda ending: None, clock=self._clock
        )
        characters = round(self._rates.characters * self._rates.lengths.prompt)
        feedings = []
        for name, (weight, mix) in self._mixes().items():
            ask = Ask(training.group_size, mix, sampling_of(training.sampling))
            feedings.append(Feeding(Schedule(name, Endless(characters), self._seed, shuffle=False), ask, weight))
        last = self._steps + self._training.max_lag + 2
        planning.begin(StagePlan(self._index, training, tuple(feedings), last))
        return planning, planner

    # -- turns ---------------------------------------------------------------------------------------------------------

    def run(self) -> Forecast:
        self.log.heard = self._heard
        for actor in self._actors:
            actor.update(0)
        self._beat()
        deadline = time.process_time() + LIMIT_SECONDS
        last = self._warm + self._steps

        def over() -> bool:
            return len(self._ends) >= last or time.process_time() > deadline

        if not self._clock.run(over) or len(self._ends) < last:
            raise RunFault(
                f"the simulation came to step {len(self._ends)} of {last} in {self._clock.now:.0f} simulated seconds; ask for fewer --steps"
            )
        return self._told()

    def _beat(self) -> None:
        self._turn()
        self._clock.after(BEAT_SECONDS, self._beat)

    def _heard(self, topic: str) -> None:
        """Who waits for records of ``topic`` looks; the planner a little later, to take many at once."""
        kind = topic.rpartition(".")[2]
        if kind in ("trajectories", "rewards"):
            self._once("planner", TURN_SECONDS, self._turn)
        if kind == "trajectories":
            self._once("judges", 0.0, self._judges_look)
        if kind == "prompts":
            self._once("actors", 0.0, self._actors_look)

    def _once(self, who: str, seconds: float, do: Callable[[], Any]) -> None:
        """Schedule ``do`` in ``seconds``, unless ``who`` already has something scheduled."""
        if who in self._due:
            return
        self._due.add(who)

        def now() -> None:
            self._due.discard(who)
            do()

        self._clock.after(seconds, now)

    def _turn(self) -> None:
        """One turn of the planner, after which the trainer takes the planned steps."""
        if self._training_now:
            self._planning.round(0.0)
        elif (planned := self._planning.next(0.0)) is not None:
            self._train(planned)

    def _judges_look(self) -> None:
        for judge in self._all_judges():
            judge.look()

    def _actors_look(self) -> None:
        for actor in self._actors:
            actor.look()

    def _all_judges(self) -> Iterable[Judge]:
        return (judge for judges in self._judges.values() for judge in judges)

    def _train(self, planned: Planned) -> None:
        tokens = sum(t.response_tokens for group in planned.groups for t, *_ in group)
        seconds = self._rates.learner_step + self._rates.learner_token * tokens
        self._training_now = True
        self._learner.change(1)
        self._clock.after(seconds, lambda: self._trained(planned, seconds))

    def _trained(self, planned: Planned, seconds: float) -> None:
        version = planned.manifest.step
        self._learner.change(-1)
        self._training_now = False
        self._planning.executed(planned.manifest)
        self._taken.append(planned)
        self._ends.append(self._clock.now)
        ages = [t.staleness(version) for group in planned.groups for t, *_ in group]
        tokens = sum(t.response_tokens for group in planned.groups for t, *_ in group)
        metrics = {f"metric_{n}": float(n) for n in range(RESULT_METRICS)} | dict(planned.manifest.metrics)
        metrics |= {"tokens_trained": float(tokens), "staleness_mean": fmean(ages), "staleness_max": float(max(ages))}
        phases = {"step": seconds, "wait_data": self._clock.now - self._ended - seconds}
        self._ended = self._clock.now
        result = StepResult(version, self._index, version, metrics, phases, self._clock.now)
        producer = self.log.producer()
        producer.send(self.topics.steps, b"result", encode(result))
        producer.flush()
        if version % self._whole.learner.learner.publish_every == 0:
            self._clock.after(self._rates.fresh, lambda: self._publish(version))
        if len(self._ends) == self._warm:
            self._begin_measuring()
        self._once("planner", 0.0, self._turn)

    def _publish(self, version: int) -> None:
        self._version = max(self._version, version)
        for actor in self._actors:
            actor.update(version)

    # -- what is told --------------------------------------------------------------------------------------------------

    def _begin_measuring(self) -> None:
        for busy in (self._learner, *(a.busy for a in self._actors), *(j.busy for j in self._all_judges())):
            busy.begin()
        self._written_before, self._read_before = self.log.written.copy(), self.log.taken.copy()
        self._tokens_before = sum(a.tokens for a in self._actors)

    def _told(self) -> Forecast:
        seconds = self._ends[-1] - self._ends[self._warm - 1]
        taken = self._taken[self._warm :]
        ages = [t.staleness(p.manifest.step) for p in taken for group in p.groups for t, *_ in group]
        waits = {
            "learner": 1 - self._learner.share,
            "actors": fmean(1 - a.busy.share for a in self._actors) if self._actors else 1.0,
            **{name: fmean(1 - j.busy.share for j in judges) for name, judges in self._judges.items()},
        }
        dropped: dict[str, float] = {}
        for planned in taken:
            for drop in planned.manifest.dropped:
                dropped[drop.reason] = dropped.get(drop.reason, 0.0) + 1 / len(taken)
        return Forecast(
            self._whole.learner.stages[self._index].name, len(taken), seconds / len(taken), waits, fmean(ages), max(ages),
            (sum(a.tokens for a in self._actors) - self._tokens_before) / seconds,
            _rates(self.log.written, self._written_before, seconds), _rates(self.log.taken, self._read_before, seconds), dropped,
        )  # fmt: skip


def _rates(now: Mapping[str, int], before: Mapping[str, int], seconds: float) -> dict[str, float]:
    return {topic.rpartition(".")[2]: (count - before.get(topic, 0)) / seconds for topic, count in now.items()}
