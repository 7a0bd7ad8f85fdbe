"""Turns on shared devices: a real control road and real local engines; who does not answer holds nobody up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patience import HANG, until
from plannertools import TOPICS, Ring
from prometheus_client import CollectorRegistry

from actors.engine import Completion, Request
from actors.local.engine import LocalEngine
from actors.shift import ShiftGate
from broker.control.client import ControlClient
from broker.control.server import ControlServer
from broker.errors import RunFileError
from broker.messages import Sampling
from broker.open import open_log
from broker.runfile import RunFile
from broker.weights.client import WeightClient
from learner.config import LearnerConfig
from learner.opening import SETTLE_SECONDS
from learner.planning.planner import Planner
from learner.planning.thread import PlanningThread
from learner.serving.publish import backend_of
from learner.serving.shifts import Shifts
from learner.tables import LearnerTable
from learner.telemetry import Telemetry
from learner.training.state import LearnerState
from monitoring.daemon import Stop

SMALL = Path(__file__).resolve().parents[2] / "chaos" / "run.toml"
PATIENCE = 3.0


class Actor:
    """A local engine that samples on a thread of its own, and its end of the control road."""

    def __init__(self, name: str, model: Path, endpoint: str, alone: float = 30.0) -> None:
        self.engine = LocalEngine(str(model), slots=4, context=128)
        self.done: list[Completion] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        self.client = WeightClient(name, self.engine.sinks[""], alone=alone)
        self.client.load(model, 0)
        self.client.connect(endpoint)
        until(lambda: self.client.joined)

    def _sample(self) -> None:
        prompt = np.array([5, 9, 40], np.int32)
        while not self._ending.is_set():
            if self.engine.room() > 0:
                self.engine.submit(Request("g", (0,), prompt, Sampling(max_new_tokens=100)))
            self.done += self.engine.poll(0.01)

    def tokens(self) -> int:
        """Drawn so far, those of unfinished samples included."""
        live = self.engine._rows.drawn
        return sum(len(c.tokens) for c in self.done) + live

    def close(self) -> None:
        self.client.close()
        self._ending.set()
        self._thread.join()


class Bench:
    """A learner's end, and the actors of one test."""

    def __init__(self, model: Path, directory: Path) -> None:
        config = LearnerConfig(
            RunFile.read(SMALL, ["learner.colocated=true", f"learner.push_timeout={PATIENCE}", f"run.model={model}"])
        )
        self.model, self.registry, self.stop = model, CollectorRegistry(), Stop()
        self.executor = LearnerState(config, str(model), 0, directory)
        self.executor.start("pretrained")
        self.telemetry = Telemetry(self.registry)
        self.published: list[bool] = []
        self._config = config
        self._open: list[Any] = []
        self.shifts = self.learner()

    def learner(self) -> Shifts:
        """A learner, as another one after the first."""
        self.control = ControlServer()
        self._open.append(self.control)
        return Shifts(self.control, self.executor, self._config.learner, self.telemetry, self.stop, self)

    def publish(self, version: int) -> None:
        self.published.append(any(a.engine.resting for a in self.actors()))

    def settled(self, seconds: float) -> bool:
        return True

    def check(self) -> None: ...

    def open(self) -> None: ...

    published = 0

    def actors(self) -> list[Actor]:
        return [a for a in self._open if isinstance(a, Actor)]

    def actor(self, name: str = "a", alone: float = 30.0) -> Actor:
        actor = Actor(name, self.model, self.control.endpoint, alone)
        self._open.insert(0, actor)
        return actor

    def member(self, name: str, **options: Any) -> ControlClient:
        client = ControlClient(name, "actor", **options)
        self._open.insert(0, client)
        client.connect(self.control.endpoint)
        until(lambda: client.joined)
        return client

    def number(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def close(self) -> None:
        for it in self._open:
            it.close()


@pytest.fixture
def bench(tiny_model: Path, tmp_path: Path) -> Iterator[Bench]:
    torch.set_num_threads(1)
    bench = Bench(tiny_model, tmp_path)
    yield bench
    bench.close()


@pytest.mark.long
def test_no_token_is_drawn_in_the_learners_turn(bench: Bench) -> None:
    actors = [bench.actor("a"), bench.actor("b")]
    until(lambda: all(a.tokens() > 50 for a in actors))
    for step in range(3):
        with bench.shifts.shift():
            assert bench.shifts.under_way and all(a.engine.resting for a in actors)
            drawn = [a.tokens() for a in actors]
            with bench.shifts.shift():  # a part of the same shift
                time.sleep(0.3)
            assert [a.tokens() for a in actors] == drawn and all(a.engine.resting for a in actors)
        assert not bench.shifts.under_way and not any(a.engine.resting for a in actors)
        until(lambda drawn=drawn: all(a.tokens() > n for a, n in zip(actors, drawn, strict=True)))
        assert bench.number("headrace_shift_seconds_count") == step + 1
    assert bench.number("headrace_shift_seconds_sum") >= 0.9
    assert bench.number("headrace_idle_seconds_total", role="learner", reason="shift") > 0
    assert not bench.published, "no turn has made a version"


def test_what_a_turn_has_made_is_published_to_engines_that_wait_for_it(bench: Bench) -> None:
    actor = bench.actor()
    bench.shifts.begin()
    bench.executor.progress = type(bench.executor.progress)(version=1)
    bench.shifts.end()
    assert bench.published == [True], "published once the engines have their memory back and before they sample"
    drawn = actor.tokens()
    time.sleep(0.2)
    assert actor.tokens() == drawn, "the old weights are not sampled from any more"
    actor.engine.apply(1, dict(bench.executor.weights()))
    until(lambda: actor.tokens() > drawn)


@pytest.mark.long
def test_who_does_not_answer_is_evicted_and_who_comes_in_a_turn_rests_at_once(bench: Bench) -> None:
    good = bench.actor("good")
    bench.member("deaf", status=lambda: {"turn": 0})
    started = time.monotonic()
    bench.shifts.begin()
    assert time.monotonic() - started >= PATIENCE and good.engine.resting
    assert bench.number("headrace_broadcast_evictions_total", member="deaf") == 1
    assert bench.number("headrace_broadcast_evictions_total", member="good") == 0
    late = bench.actor("late")
    until(lambda: late.engine.resting)
    drawn = late.tokens()
    time.sleep(0.2)
    assert late.tokens() == drawn
    bench.shifts.end()
    until(lambda: late.tokens() > drawn)


@pytest.mark.long
def test_engines_go_on_alone_when_the_learner_has_died_in_its_turn_and_rest_again_for_its_successor(
    bench: Bench,
) -> None:
    actor = bench.actor("a", alone=3.0)
    bench.shifts.begin()
    assert actor.engine.resting
    time.sleep(4.0)
    assert actor.engine.resting, "a learner that is heard of is waited for"
    drawn = actor.tokens()
    bench.control.close()
    bench._open.remove(bench.control)
    until(lambda: actor.tokens() > drawn)
    second = bench.learner()
    actor.client.connect(bench.control.endpoint)
    second.begin(settle=SETTLE_SECONDS)
    assert actor.engine.resting
    second.end()
    assert not actor.engine.resting


@pytest.mark.long
def test_a_successor_takes_engines_over_that_rest_still(bench: Bench) -> None:
    actor = bench.actor("a")
    bench.shifts.begin()
    bench.control.close()
    bench._open.remove(bench.control)
    second = bench.learner()
    actor.client.connect(bench.control.endpoint)
    second.begin(settle=SETTLE_SECONDS)
    assert actor.engine.resting
    drawn = actor.tokens()
    second.end()
    until(lambda: actor.tokens() > drawn)


@pytest.mark.long
def test_an_engine_is_not_opened_in_the_learners_turn_and_a_turn_waits_for_one_that_is_being_opened(
    bench: Bench,
) -> None:
    bench.shifts.begin()
    gate = ShiftGate("a", bench.control.endpoint)
    opened = threading.Event()
    waiting = threading.Thread(target=lambda: (gate.wait(Stop(), nullcontext()), opened.set()))
    waiting.start()
    assert not opened.wait(1.0)
    bench.shifts.end()
    assert opened.wait(HANG)
    started = time.monotonic()
    threading.Timer(1.0, gate.close).start()
    bench.shifts.begin()
    assert time.monotonic() - started >= 1.0
    assert bench.number("headrace_broadcast_evictions_total", member="a.opening") == 0, "it left by itself"
    bench.shifts.end()
    waiting.join()


def test_an_engine_is_opened_where_no_learner_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.shift.KNOWN_SECONDS", 0.3)
    gate = ShiftGate("a", "tcp://127.0.0.1:9")
    gate.wait(Stop(), nullcontext())
    gate.close()
    gate.close()


def test_a_turns_steps_are_planned_before_it_and_no_deadline_passes_in_it(bench: Bench, tmp_path: Path) -> None:
    log = open_log(f"sqlite://{tmp_path / 'log'}")
    log.create(TOPICS.specs())
    ring = Ring(log, max_lag=2, deadline=60.0)
    thread = PlanningThread(
        ring.planner, ring.collections, lambda result: None, ahead=2, resting=lambda: bench.shifts.under_way
    )
    thread.start()
    thread.begin(ring.stage)
    prompts: list[Any] = []
    until(lambda: prompts.extend(ring.fed()) or len(prompts) == 6)
    for prompt in prompts[:2]:
        ring.answer(prompt, [0, 1])
    until(lambda: thread.call(lambda: ring.planner.planned) == 1)
    assert not thread.is_ready(), "one step of two"
    for prompt in prompts[2:4]:
        ring.answer(prompt, [0, 1])
    until(thread.is_ready)
    late = {prompt.group_id for prompt in prompts[4:]}
    bench.shifts.begin()
    thread.call(lambda: age(ring.planner, 100.0))
    time.sleep(0.2)
    assert late <= thread.call(lambda: set(ring.planner.join.groups)), "nobody can answer in a turn"
    bench.shifts.end()
    thread.call(lambda: age(ring.planner, 100.0))
    until(lambda: not late & thread.call(lambda: set(ring.planner.join.groups)))
    thread.begin(replace(ring.stage, last_step=2))
    assert thread.next(0.0) and thread.is_ready(), "at the end of a stage a turn takes what is left"
    thread.stop()
    log.close()


def age(planner: Planner, seconds: float) -> None:
    """As if its groups had been fed so much earlier."""
    planner._started -= seconds
    for group in planner.join.groups.values():
        group.fed -= seconds


def test_without_colocated_there_are_no_turns(bench: Bench) -> None:
    shifts = Shifts(bench.control, bench.executor, LearnerTable(), bench.telemetry, bench.stop, bench)
    actor = bench.actor()
    with shifts.shift():
        assert not shifts.under_way and not actor.engine.resting
    shifts.end()
    assert not bench.published


def test_a_stop_ends_the_waiting(bench: Bench) -> None:
    bench.member("deaf", status=lambda: {"turn": 0})
    threading.Timer(0.5, bench.stop.set).start()
    bench.shifts.begin()
    assert bench.number("headrace_broadcast_evictions_total", member="deaf") == 0, "it was not waited for to the end"


def test_a_single_stage_cannot_take_turns() -> None:
    with pytest.raises(RunFileError, match=r"colocated holds for the whole run: set it in \[learner\]"):
        LearnerConfig(RunFile.read(SMALL, ["stage.1.learner.colocated=true"]))


@pytest.mark.parametrize(
    ("device", "table", "backend"),
    [
        ("cpu", {}, "gloo"),
        ("cuda", {}, "nccl"),
        ("cuda:1", {}, "nccl"),
        ("cuda", {"colocated": True}, "gloo"),
        ("cuda", {"backend": "gloo"}, "gloo"),
    ],
)
def test_what_carries_the_weights(device: str, table: dict[str, Any], backend: str) -> None:
    assert backend_of(LearnerTable.model_validate(table), device) == backend
    with pytest.raises(RunFileError, match="needs a GPU"):
        backend_of(LearnerTable(backend="nccl"), "cpu")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"shift_steps": 3, "max_lag": 1}, "raise max_lag"),
        ({"colocated": True, "backend": "nccl"}, 'use backend = "gloo"'),
    ],
)
def test_what_cannot_be_is_refused(table: dict[str, Any], says: str) -> None:
    file = RunFile.read(SMALL)
    file.tables["learner"] |= table
    with pytest.raises(RunFileError, match=says):
        LearnerConfig(file)
