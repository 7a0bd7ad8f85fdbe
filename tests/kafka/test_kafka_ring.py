"""Whole runs on a real Kafka: a broker that may die, redo from its log, fencing, exact counts."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from patience import HANG, until
from ringtools import answer_of, by_role, end_run, kill, sets, start_run, verify
from runlog import said, sha256_of, steps_of

from broker.errors import HeldByAnother, LogUnavailable
from broker.kafka.server import KafkaServer
from broker.log import TopicSpec
from broker.messages import Manifest, encode
from broker.open import open_log
from broker.run import Run
from headrace.reading.records import scan
from headrace.running.rundir import reopen

pytestmark = pytest.mark.kafka
OUTAGE = float(os.environ.get("HEADRACE_OUTAGE") or 12)  # seconds
KILLS = int(os.environ.get("HEADRACE_KILLS") or 8)
SEED = int(os.environ.get("HEADRACE_SEED") or 0) or random.randrange(1, 10**6)


def options(name: str, url: str, *more: str) -> list[str]:
    settings = [f"run.name={name}", f"broker.url={url}", *more]
    return sets(*settings)


def test_killed_and_redone_from_kafka_gives_the_same_weights_bit_for_bit(kafka: KafkaServer, tmp_path: Path) -> None:
    steps = 24
    settings = options("redo", kafka.url, f"stage.1.steps={steps}", "learner.checkpoint_every=1000")
    run = start_run(tmp_path, *settings)
    try:
        until(lambda: run.poll() is not None or steps_of(tmp_path) >= 3, "the third step")
        assert run.poll() is None, said(tmp_path)
        by_role(run, "learner")[0].kill()  # every step is redone: there is no checkpoint since the first stage
        seen = steps_of(tmp_path)
        poison(tmp_path)
        until(lambda: run.poll() is not None or steps_of(tmp_path) >= seen + 3, "more steps")
        assert run.wait(HANG) == 0, said(tmp_path)
    finally:
        end_run(run)
    audit = verify(tmp_path)
    assert (audit["steps"], audit["trained"], audit["outstanding"], audit["dead_letters"]) == (steps, 4 * steps, 0, 3)
    last = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    replayed = answer_of("replay", str(tmp_path), "--steps", f"2-{steps + 1}", "--out", str(tmp_path / "replay"))
    assert replayed.stdout.strip() == sha256_of(last), replayed.stderr
    assert replay_from_sqlite(tmp_path, steps + 1) == sha256_of(last), (
        "and the same again from a copy of the log in SQLite"
    )
    look_at_the_log(tmp_path)


def replay_from_sqlite(directory: Path, last: int) -> str:
    """The weights that the run's records give in the embedded log, at the same offsets (the gaps are transactions' marks)."""
    from learner.replay import replay

    run = reopen(directory)
    copy = Run.open(directory / "run.toml", [f"broker.url=sqlite://{directory / 'copy'}"], directory)
    source, target = run.open_log(), copy.open_log()
    producer = target.producer()
    for topic in (run.topics.prompts, run.topics.trajectories, run.topics.rewards, run.topics.steps):
        place = dict.fromkeys(source.ends(topic), 0)
        for record, _ in scan(source, topic):
            while place[record.partition] < record.offset:
                producer.send(topic, b"", b"\xc1 a gap", record.partition)
                place[record.partition] += 1
            producer.send(topic, record.key, record.value, record.partition)
            place[record.partition] += 1
        producer.flush()
    for thing in (producer, source, target):
        thing.close()
    return replay(copy, 2, last, directory / "from-sqlite", None)


def look_at_the_log(directory: Path) -> None:
    """The log's command line says of Kafka what it says of the embedded log."""

    def broker(*arguments: str) -> list[dict[str, object]]:
        done = answer_of("broker", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    home = str(directory)
    assert {row["topic"]: row["partitions"] for row in broker("topics", home)} == {
        "redo.prompts": 8, "redo.trajectories": 8, "redo.rewards": 8, "redo.steps": 1, "redo.policy": 1, "redo.deadletters": 1,
    }  # fmt: skip
    lags = {(row["group"], row["topic"]): row["lag"] for row in broker("lag", home)}
    assert lags == {("redo.actors", "redo.prompts"): 0, ("redo.rewarder.vowels", "redo.trajectories"): 0}
    assert len(broker("tail", home, "--topic", "steps", "--count", "3")) == 3
    waiting = [int(str(row["offset"])) for row in broker("dlq", "list", home)]
    assert len(waiting) == 3
    broker("dlq", "drop", home, str(waiting[0]))
    broker("dlq", "replay", home, str(waiting[1]))
    assert [row["offset"] for row in broker("dlq", "list", home)] == waiting[2:]
    removable = sum(int(str(row["removable"])) for row in broker("trim", home, "--dry-run"))
    assert removable > 0 and sum(int(str(row["removed"])) for row in broker("trim", home)) == removable
    assert verify(directory)["expired"] == removable_steps(directory)


def removable_steps(directory: Path) -> int:
    """How many records the manifests name: all of a finished run's were removed."""
    run = reopen(directory)
    log = run.open_log()
    steps = [m for _, m in scan(log, run.topics.steps) if isinstance(m, Manifest)]
    log.close()
    return sum(1 + len(g.samples) + sum(len(s.votes) for s in g.samples) for m in steps for g in m.groups)


def test_a_run_may_bring_its_own_broker(tmp_path: Path) -> None:
    settings = ["--set", "stage.1.steps=3", "--kafka"]
    run = start_run(tmp_path, *settings)
    try:
        assert run.wait(HANG) == 0, said(tmp_path)
    finally:
        end_run(run)
    assert "log      kafka://127.0.0.1:" in (tmp_path / "run.out").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 3 and summary["groups"]["outstanding"] == 0


def poison(directory: Path) -> None:
    """What another client of the cluster might write, past our own producer's checks."""
    from kafka import KafkaProducer

    run = reopen(directory)
    client = KafkaProducer(bootstrap_servers=run.url.removeprefix("kafka://"))
    client.send(run.topics.prompts, b"\xc1 rubbish", b"nobody", partition=0)
    client.send(run.topics.trajectories, b"\xc1 rubbish", None, partition=1)
    client.send(run.topics.rewards, encode(Manifest(0, 0, "close")), b"nobody", partition=2)
    client.flush(20)
    client.close()


def test_a_broker_that_is_killed_and_comes_back_costs_time_and_nothing_else(tmp_path: Path) -> None:
    server = KafkaServer(tmp_path / "kafka")
    server.start()
    home = tmp_path / "run"
    run = start_run(home, *options("outage", server.url, "stage.1.steps=40"))
    try:
        until(lambda: run.poll() is not None or steps_of(home) >= 3, "the third step")
        server.kill()
        until(lambda: run.poll() is not None or "waiting for the log" in said(home), "the view to say so")
        assert run.poll() is None, said(home)
        until(lambda: away(home) > 0, "the metric to say so")
        time.sleep(OUTAGE)
        assert run.poll() is None, said(home)
        server.start()
        assert run.wait(HANG) == 0, said(home)
        audit = verify(home)
        assert (audit["steps"], audit["trained"], audit["outstanding"], audit["dropped"]) == (40, 160, 0, 0)
    finally:
        end_run(run)
        server.stop()


def away(directory: Path) -> int:
    """How many daemons say in their metrics that they wait for the log."""
    from monitoring.daemon import registrations
    from monitoring.scrape import scrape

    return sum(scrape(d.metrics).get("headrace_log_unavailable", 0.0) > 0 for d in registrations(directory))


ROLES = ("learner", "publisher", "actors", "rewarders", "judge", "supervisor", "broker")


def test_a_storm_of_kills_over_daemons_and_broker_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Each kill comes behind another step; the run has no end until all are done."""
    print(f"\nchaos on Kafka: {KILLS} kills, seed {SEED} (again: HEADRACE_SEED={SEED})")
    rng = random.Random(SEED)
    victims = [ROLES[i % len(ROLES)] for i in range(KILLS)]
    rng.shuffle(victims)
    server = KafkaServer(tmp_path / "kafka")
    server.start()
    home = tmp_path / "run"
    endless = options("storm", server.url, "stage.1.steps=100000", "learner.optimizer.schedule=constant")
    run = start_run(home, *endless)
    try:
        for victim in victims:
            another_step(home, run)
            if victim == "broker":
                server.kill()
                time.sleep(rng.uniform(0.0, 4.0))  # how long it is away is a part of the storm
                server.start()
            else:
                run = kill(victim, run, rng, home, endless)
            print(f"  killed {victim}", flush=True)
        another_step(home, run)
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(HANG) == 130, said(home)
        steps = steps_of(home) + 4
        run = start_run(home, *endless, "--set", f"stage.1.steps={steps}")
        assert run.wait(HANG) == 0, said(home)
        audit = verify(home)
        assert audit["problems"] == [] and audit["outstanding"] == 0
        assert (audit["steps"], audit["samples_trained"]) == (steps, 16 * steps)
    finally:
        end_run(run)
        server.stop()


def another_step(home: Path, run: subprocess.Popen[bytes]) -> None:
    """Until one more step was planned."""

    def planned() -> int:
        with contextlib.suppress(LogUnavailable):  # a broker that has just been started
            return steps_of(home)
        return 0

    seen = planned()
    until(lambda: run.poll() is not None or planned() > seen, "another step")
    assert run.poll() is None, said(home)


def test_a_member_that_is_given_nothing_is_no_refused_one(kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its group lists nobody else, so nobody else holds the name: the learner asks again, as for a log that is away."""
    from broker.kafka.owner import Ownership

    log = open_log(f"{kafka.url}?replication=1")

    def take() -> Ownership:
        return Ownership(log._settings, log._admin, "anew.owners", "anew.learner", "the learner")  # type: ignore[attr-defined]

    monkeypatch.setattr("broker.kafka.owner.JOIN_SECONDS", 1.0)
    with pytest.raises(LogUnavailable, match="only member"):  # the topic that it would be given is not there yet
        take()
    monkeypatch.undo()
    log.create([TopicSpec("anew.owners", 1)])
    take().release()
    log.close()


def test_who_was_superseded_can_write_no_more(kafka: KafkaServer) -> None:
    """The transactional id fences a learner that was cut off; the one that holds the name goes on."""
    from broker.kafka.producer import ExclusiveProducer

    log = open_log(f"{kafka.url}?replication=1")
    log.create([TopicSpec("fenced.steps", 1)])
    zombie = log.exclusive_producer("fenced.learner", "the first learner")
    zombie.send("fenced.steps", b"k", b"first")
    zombie.flush()
    with pytest.raises(HeldByAnother, match="the first learner"):
        log.exclusive_producer("fenced.learner", "the second learner")
    zombie.send("fenced.steps", b"k", b"still here")
    assert len(zombie.flush()) == 1, "a refused one disturbs nobody"
    heir = ExclusiveProducer(log._settings, log._partitions, "fenced.learner", lambda: None, lambda: None)  # type: ignore[attr-defined]
    zombie.send("fenced.steps", b"k", b"too late")
    with pytest.raises(HeldByAnother):
        zombie.flush()
    heir.send("fenced.steps", b"k", b"second")
    heir.flush()
    end = log.ends("fenced.steps")
    reader = log.reader("fenced.steps")
    values: list[bytes] = []
    while any(offset < end[p] for p, offset in reader.offsets().items()):
        values += [r.value for r in reader.poll(16, 1.0)]
    assert values == [b"first", b"still here", b"second"]
    for thing in (zombie, heir, reader, log):
        thing.close()
