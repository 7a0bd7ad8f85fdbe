"""Daemons come, go and stall in the middle of a run; a slow sample and a full disk hold nobody up."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import HANG, until
from prometheus_client import CollectorRegistry
from ringtools import SMALL, end_run, start_run, verify
from runlog import said, steps_of

from broker.errors import LogError
from broker.kafka.server import KafkaServer
from broker.log import Log, TopicSpec
from broker.messages import ChatMessage, Sampling, Segment, Trajectory, VersionSpan, Vote, encode
from broker.open import open_log
from broker.topics import Topics
from headrace.reading.records import scan
from monitoring.metrics import BrokerMetrics, RewarderMetrics, SystemMetrics
from rewarders.config import RewarderTable
from rewarders.worker import RewarderWorker

pytestmark = pytest.mark.kafka
SLOW = """
import pathlib, time
class Slow:
    def __call__(self, sample):
        while sample.text == "slow" and not pathlib.Path({go!r}).exists():
            time.sleep(0.05)
        return 1
"""


def test_actors_and_rewarders_come_go_and_stall_in_mid_run(kafka: KafkaServer, tmp_path: Path) -> None:
    from test_kafka_ring import options

    settings = options("elastic", kafka.url, "stage.1.steps=100000")
    home = tmp_path / "run"
    run = start_run(home, *settings)
    more: list[subprocess.Popen[bytes]] = []
    try:
        until(lambda: run.poll() is not None or steps_of(home) >= 3, "the third step")
        common = [str(SMALL), *settings, "--dir", str(home), "--name"]
        for order in (["actor", *common, "actor-9"], ["rewarder", *common, "vowels-9", "--rewarder", "vowels"]):
            with (tmp_path / f"{order[0]}.err").open("wb") as words:
                more.append(subprocess.Popen([sys.executable, "-m", "headrace", *order], stderr=words))
        until(lambda: any(d.poll() is not None for d in more) or shared(kafka), "two members in each group")
        assert all(d.poll() is None for d in more), "".join(f.read_text() for f in tmp_path.glob("*.err"))
        os.kill(more[1].pid, signal.SIGSTOP)  # longer than its session: its partitions move to the other
        time.sleep(9)
        os.kill(more[1].pid, signal.SIGCONT)
        time.sleep(3)
        for daemon in more:
            daemon.terminate()
            assert daemon.wait(HANG) == 0
        seen = steps_of(home)
        until(lambda: run.poll() is not None or steps_of(home) >= seen + 5, "steps without them")
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(HANG) == 130, said(home)
    finally:
        end_run(run)
        for daemon in more:
            daemon.kill()
    audit = verify(home)
    assert (audit["trained"], audit["dropped"], audit["problems"]) == (4 * audit["steps"], 0, [])


def shared(kafka: KafkaServer) -> bool:
    """Whether actors and rewarders have two members each that hold partitions."""
    from kafka.admin import KafkaAdminClient

    groups = ["elastic.actors", "elastic.rewarder.vowels"]
    admin = KafkaAdminClient(bootstrap_servers=kafka.address)
    found = admin.describe_groups(groups)
    admin.close()
    return all(sum(bool(m.get("member_assignment")) for m in found[g]["members"]) == 2 for g in groups)


def test_a_slow_sample_does_not_hold_up_those_behind_it(kafka: KafkaServer, tmp_path: Path) -> None:
    topics = Topics("hol", 2)
    log = open_log(f"{kafka.url}?replication=1")
    log.create(topics.specs())
    (tmp_path / "slow.py").write_text(SLOW.format(go=str(tmp_path / "go")))
    producer = log.producer()
    for i, text in enumerate(["slow"] + ["quick"] * 40):
        producer.send(topics.trajectories, b"k", encode(sample(f"g-{i}@0", text)), 0)
    producer.flush()
    registry = CollectorRegistry()
    table = RewarderTable.model_validate({"use": "slow.py:Slow", "processes": 2, "timeout": 200.0})
    worker = RewarderWorker(
        "r-0", "r", log, topics, table, tmp_path, RewarderMetrics(registry, "r"), BrokerMetrics(registry), SystemMetrics(registry, "rewarder"),
    )  # fmt: skip
    deadline = time.monotonic() + HANG
    while sum(isinstance(m, Vote) for _, m in scan(log, topics.rewards)) < 40:
        for _ in range(50):
            worker.round()
        assert time.monotonic() < deadline
    assert worker._in_flight == 1, "all but the slow one are judged"
    assert log.committed(topics.group("rewarder.r"), topics.trajectories).get(0, 0) == 0, (
        "and the slow one is not passed over"
    )
    (tmp_path / "go").touch()
    group = topics.group("rewarder.r")
    while log.lag(group, topics.trajectories):  # judged again, should the worker's place have been lost meanwhile
        worker.round()
        assert time.monotonic() < deadline
    worker.close()
    for thing in (producer, log):
        thing.close()


def sample(group_id: str, text: str) -> Trajectory:
    import numpy as np

    spans = (Segment("prompt", 0, 1, False), Segment("assistant", 1, 2, True))
    return Trajectory(
        group_id, 0, 1, (ChatMessage("user", "?"),), None, "", {}, {"r": 1.0}, "train", text, np.array([1, 2], np.int32),
        np.zeros(2, np.float32), spans, (VersionSpan(0, 1),), "stop", Sampling(),
    )  # fmt: skip


def test_a_full_disk_under_the_broker_is_survived_once_there_is_room(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the disk: a write beyond it fails as one to a full disk does, and the broker stops itself."""
    server = KafkaServer(tmp_path / "kafka")
    server.start()
    log = open_log(f"{server.url}?replication=1")
    log.create([TopicSpec("full.t", 1)])
    producer = log.producer()
    written: list[bytes] = []
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (11 << 20, resource.RLIM_INFINITY))
    try:
        failed = False
        for i in range(40):
            value = f"{i:04}".encode() * (1 << 17)
            producer.send("full.t", b"k", value)
            written.append(value)
            try:
                producer.flush()
            except LogError:
                failed = True
                break
        assert failed, "the disk was full"
        server.kill()
        server.start()
        deadline = time.monotonic() + HANG
        while True:
            try:
                producer.flush()  # what the failed one has kept
                break
            except LogError:
                assert time.monotonic() < deadline
                time.sleep(1)
        producer.send("full.t", b"k", b"after")
        producer.flush()
        assert values(log, "full.t") == [*written, b"after"]
    finally:
        producer.close()
        log.close()
        server.stop()


def values(log: Log, topic: str) -> list[bytes]:
    reader, ends = log.reader(topic), log.ends(topic)
    found: list[bytes] = []
    while any(offset < ends[p] for p, offset in reader.offsets().items()):
        found += [r.value for r in reader.poll(16, 1.0)]
    reader.close()
    return found
