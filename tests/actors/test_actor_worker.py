"""The actor over a real log: at least once, nothing lost, what cannot be served goes to the dead letters."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from awaylog import Away
from patience import HANG, until
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file

from actors.config import ActorsTable, EnvironmentTable
from actors.engine import Completion, Request
from actors.environment import Asked, Turn
from actors.intake import Intake
from actors.local.engine import LocalEngine
from actors.rooms import Rooms, Said
from actors.turns import Mark, since
from actors.worker import ActorWorker
from broker.errors import LogUnavailable
from broker.log import Log
from broker.messages import ChatMessage, DeadLetter, Prompt, Sampling, Trajectory, VersionSpan, decode, encode
from broker.open import open_log
from broker.topics import Topics
from headrace.reading.records import scan
from monitoring.metrics import ActorMetrics, BrokerMetrics, SystemMetrics

TOPICS = Topics("t", partitions=2)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = open_log(f"sqlite://{tmp_path}/log")
    log.create(TOPICS.specs())
    yield log
    log.close()


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> LocalEngine:
    torch.set_num_threads(1)
    engine = LocalEngine(str(tiny_model), slots=8, context=64)
    engine.apply(0, load_file(tiny_model / "model.safetensors"))
    return engine


def worker_of(
    log: Log, engine: LocalEngine, name: str = "actor-0", rooms: Rooms | None = None, **table: Any
) -> ActorWorker:
    registry = CollectorRegistry()
    metrics: tuple[Any, ...] = (ActorMetrics(registry), BrokerMetrics(registry), SystemMetrics(registry, "actor"))
    rooms = rooms or Rooms({}, Path())
    return ActorWorker(name, Intake(name, log, TOPICS), engine, rooms, ActorsTable(slots=8, **table), *metrics)


def feed(log: Log, count: int, **fields: Any) -> list[Prompt]:
    producer = log.producer()
    prompts = []
    for i in range(count):
        messages = (ChatMessage("user", f"Compute {i}+2 mod 10."),)
        prompts.append(
            Prompt(
                f"d-{i}@0",
                messages,
                3,
                answer=str(i),
                metadata={"row": i},
                rewards={"r": 1.0},
                sampling=Sampling(max_new_tokens=5, max_turns=6),
                **fields,
            )
        )
        producer.send(TOPICS.prompts, prompts[-1].group_id.encode(), encode(prompts[-1]), i % 2)
    producer.flush()
    return prompts


def work_until(worker: ActorWorker, log: Log, committed: int) -> None:
    deadline = time.monotonic() + HANG
    while sum(log.committed(TOPICS.group("actors"), TOPICS.prompts).values()) < committed:
        with contextlib.suppress(LogUnavailable):  # as ``keep_going``
            worker.round()
        assert time.monotonic() < deadline


def samples(log: Log) -> list[Trajectory]:
    return [m for _, m in scan(log, TOPICS.trajectories) if isinstance(m, Trajectory)]


def test_every_sample_of_every_prompt_is_published_with_what_rewarders_need(log: Log, engine: LocalEngine) -> None:
    prompts = feed(log, 5)
    worker = worker_of(log, engine)
    work_until(worker, log, 5)
    worker.close()
    found = samples(log)
    assert sorted(s.id for s in found) == sorted(f"{p.group_id}#{i}" for p in prompts for i in range(3))
    for s in found:
        prompt = prompts[int(s.kind or s.metadata["row"])]
        assert (s.answer, s.messages, s.rewards, s.group_size) == (prompt.answer, prompt.messages, {"r": 1.0}, 3)
        assert s.response_tokens <= 5 and s.versions[0].start == s.segments[1].start


def test_what_an_actor_had_not_committed_is_sampled_again_by_the_next(log: Log, engine: LocalEngine) -> None:
    feed(log, 4)
    first = worker_of(log, engine)
    first.round()
    for i in range(4):
        engine.cancel(f"d-{i}@0")
    second = worker_of(log, engine)  # the first one ends without a word
    work_until(second, log, 4)
    second.close()
    assert {s.id for s in samples(log)} == {f"d-{i}@0#{k}" for i in range(4) for k in range(3)}


def test_a_prompt_that_is_delivered_again_while_it_is_under_way_is_committed_when_it_is_done(
    log: Log, engine: LocalEngine
) -> None:
    feed(log, 1)
    worker = worker_of(log, engine)
    worker._take()
    worker._intake.leave()  # its partitions go to another member, and come back
    worker._intake.join()
    worker._take()
    feed(log, 1)  # this is another record: the same group, asked for a second time
    worker._take()
    worker._intake.flush(at_once=True)
    assert not sum(log.committed(TOPICS.group("actors"), TOPICS.prompts).values())
    work_until(worker, log, 2)
    worker.close()
    assert sorted(s.id for s in samples(log)) == [f"d-0@0#{k}" for k in range(3)]


class Sleeper(LocalEngine):
    """An engine whose weights can go away, as those of a server that has ended."""

    asleep = False

    @property
    def version(self) -> int:
        return -1 if self.asleep else super().version

    def poll(self, timeout: float) -> list[Completion]:
        return [] if self.asleep else super().poll(timeout)


@pytest.mark.long
def test_an_actor_whose_engine_is_away_gives_its_prompts_back_and_comes_again(
    log: Log, tiny_model: Path, engine: LocalEngine
) -> None:
    sleeper = Sleeper(str(tiny_model), slots=8, context=64)
    sleeper.apply(0, load_file(tiny_model / "model.safetensors"))
    first, second = worker_of(log, sleeper, "first", give_back=0.2), worker_of(log, engine, "second")
    feed(log, 6)
    deadline = time.monotonic() + HANG
    while not (sleeper._rows.live and engine._rows.live) and not samples(log):
        first.round()
        second.round()
        assert time.monotonic() < deadline
    sleeper.asleep = True
    while sum(log.committed(TOPICS.group("actors"), TOPICS.prompts).values()) < 6:
        first.round()
        second.round()
        assert time.monotonic() < deadline
    assert {s.id for s in samples(log)} == {f"d-{i}@0#{k}" for i in range(6) for k in range(3)}
    sleeper.asleep = False
    second.close()
    feed(log, 2)
    work_until(first, log, 8)
    first.close()


def test_what_cannot_be_served_goes_to_the_dead_letters_and_the_rest_goes_on(log: Log, engine: LocalEngine) -> None:
    producer = log.producer()
    producer.send(TOPICS.prompts, b"broken", b"\xc1 no message")
    long = Prompt("long-0@0", (ChatMessage("user", "x" * 500),), 2, sampling=Sampling(max_new_tokens=5))
    greedy = Prompt("greedy-0@0", (ChatMessage("user", "hi"),), 2, sampling=Sampling(max_new_tokens=500))
    for prompt in (long, greedy):
        producer.send(TOPICS.prompts, prompt.group_id.encode(), encode(prompt))
    producer.flush()
    feed(log, 2)
    worker = worker_of(log, engine)
    work_until(worker, log, 5)
    worker.close()
    letters = {m.group_id: m for _, m in scan(log, TOPICS.deadletters) if isinstance(m, DeadLetter)}
    assert letters.keys() == {"broken", "long-0@0", "greedy-0@0"}
    assert letters["broken"].value == b"\xc1 no message" and "context of 64" in letters["long-0@0"].error
    assert decode(letters["greedy-0@0"].value) == greedy
    assert len(samples(log)) == 6


def test_what_is_handled_while_the_log_is_away_is_published_when_it_is_back(
    log: Log, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = log.producer()
    for key in (b"broken-1", b"broken-2"):
        producer.send(TOPICS.prompts, key, b"\xc1 no message")
    producer.flush()
    prompts = feed(log, 3)
    make = log.producer
    monkeypatch.setattr(log, "producer", lambda: Away(make(), sends=4, flushes=1))
    worker = worker_of(log, engine)
    work_until(worker, log, 5)
    worker.close()
    assert sorted(s.id for s in samples(log)) == sorted(f"{p.group_id}#{i}" for p in prompts for i in range(3))
    letters = [m.group_id for _, m in scan(log, TOPICS.deadletters) if isinstance(m, DeadLetter)]
    assert sorted(letters) == ["broken-1", "broken-2"]


def test_a_prompt_whose_samples_no_record_can_hold_goes_to_the_dead_letters(
    log: Log, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(log, 1)
    producer = log.producer()
    huge = Prompt(
        "huge-0@0",
        (ChatMessage("user", "hi"),),
        2,
        answer="x" * 6000,
        rewards={"r": 1.0},
        sampling=Sampling(max_new_tokens=5),
    )
    producer.send(TOPICS.prompts, b"huge", encode(huge))
    producer.flush()
    monkeypatch.setattr("broker.sqlite.log.MAX_RECORD_BYTES", 6000)
    worker = worker_of(log, engine)
    work_until(worker, log, 2)
    worker.close()
    (letter,) = (m for _, m in scan(log, TOPICS.deadletters) if isinstance(m, DeadLetter))
    assert letter.group_id == "huge-0@0" and "a record of" in letter.error
    assert {s.id for s in samples(log)} == {f"d-0@0#{i}" for i in range(3)}


def test_the_time_of_an_episode_begins_when_its_agent_comes_and_not_when_its_place_is_free(
    log: Log, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[Request] = []
    monkeypatch.setattr(engine, "submit", submitted.append)
    feed(log, 1, environment="agents")
    rooms = Rooms({"agents": EnvironmentTable(use="actors.agents:Agents", seconds=600)}, Path())
    worker = worker_of(log, engine, rooms=rooms)
    worker._take()
    (work,) = worker._work.values()
    until(lambda: len(rooms._agents["agents"]._samples) >= 3)  # its own thread takes them in
    work.begun = dict.fromkeys(work.begun, time.monotonic() - 3600)
    asks = [Turn((ChatMessage("user", text),), asked=Asked("session")) for text in ("one", "two")]
    ids = np.array([7, 8], np.int32)
    reply = Completion(
        work.prompt.group_id, 0, ids, np.full(2, -0.5, np.float32), (VersionSpan(0, 0),), "stop", "ab", 1.0
    )
    worker._say([Said(work.tickets[0], asks[0])])
    worker._hear(reply)
    earlier = (since(work.episodes[0], Mark()),)
    worker._say([Said(work.tickets[0], asks[1])])
    elsewhere = Turn(asks[1].messages, asked=Asked("session", earlier=earlier))
    worker._say([Said(work.tickets[1], elsewhere)])  # this one has had its first reply in another actor
    assert [r.indices for r in submitted] == [(0,), (0,), (1,)] and work.missing == {0, 1, 2}
    assert submitted[1].tokens.tolist() == submitted[2].tokens.tolist()
    work.begun[0] -= 3600
    worker._hear(reply)
    worker._say([Said(work.tickets[0], asks[1])])
    assert len(submitted) == 3 and work.missing == {1, 2}, "but it does end"
    worker.close()
