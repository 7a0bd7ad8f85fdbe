"""What is particular to the embedded log: kills in the middle of appends, a full disk, damage, retention."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patience import HANG, until
from ringtools import stopped_in_an_append

from broker.errors import LogError, LogFull, LogUnavailable, RunFileError
from broker.log import Record, TopicSpec
from broker.messages import Position
from broker.open import open_log
from broker.patience import PatientProducer
from broker.sqlite.groups import GroupsFile
from broker.sqlite.log import SqliteLog
from broker.sqlite.topic import Row, TopicFile
from monitoring.daemon import Stop

SPAWN = multiprocessing.get_context("spawn")


def append_for_ever(url: str, worker: int, acknowledged: str) -> None:
    """Append in order; note each number in a file once the log has acknowledged it."""
    producer = open_log(url).producer()
    with Path(acknowledged).open("a", buffering=1) as done:
        start = len(Path(acknowledged).read_text().split())
        for i in range(start, 10**9):
            producer.send("t", str(worker).encode(), f"{worker}/{i}".encode() + b"x" * 500, worker)
            producer.flush()
            done.write(f"{i}\n")


@pytest.mark.long
def test_acknowledged_records_survive_kill_9_once_and_in_order(tmp_path: Path) -> None:
    url, rng = f"sqlite://{tmp_path / 'log'}", random.Random(5)
    log = open_log(url)
    log.create([TopicSpec("t", 2)])
    files = [str(tmp_path / f"done-{w}") for w in range(2)]
    for file in files:
        Path(file).touch()
    for round_ in range(4):
        workers = [SPAWN.Process(target=append_for_ever, args=(url, w, files[w]), daemon=True) for w in range(2)]
        for worker in workers:
            worker.start()
        wanted = 10 * (round_ + 1)
        until(lambda: all(Path(file).read_text().count("\n") > wanted for file in files), "an acknowledgement")  # noqa: B023
        time.sleep(rng.uniform(0.0, 0.1))
        for worker in workers:
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()
    reader = log.reader("t")
    values: dict[int, list[int]] = {0: [], 1: []}
    while records := reader.poll(500, 0.2):
        for record in records:
            worker, number = record.value.rstrip(b"x").split(b"/")
            values[int(worker)].append(int(number))
    for worker, file in enumerate(files):
        acknowledged = [int(line) for line in Path(file).read_text().split()]
        assert len(acknowledged) > 10
        found = sorted(set(values[worker]))
        assert set(acknowledged) <= set(found)
        again = len(values[worker]) - len(found)
        assert again <= 4, "only what was durable but not yet acknowledged may come twice, once a kill"
        assert values[worker] == sorted(values[worker])
    reader.close()
    log.close()


def test_a_full_disk_is_a_clear_stop_and_room_heals_it(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path, max_pages=60)
    log.create([TopicSpec("t", 1)])
    producer = log.producer()
    sent = 0
    with pytest.raises(LogFull, match="free some"):
        for _ in range(1000):
            producer.send("t", b"k", bytes(4000))
            producer.flush()
            sent += 1
    producer.close()
    assert log.ends("t") == {0: sent} and sent > 10
    roomy = SqliteLog(tmp_path)
    producer = roomy.producer()
    producer.send("t", b"k", b"after")
    assert producer.flush()[0].offset == sent
    producer.close()
    roomy.close()
    log.close()


def test_a_damaged_or_foreign_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.sqlite").write_bytes(b"this is no database, whatever its name says" * 100)
    log = SqliteLog(tmp_path)
    with pytest.raises(LogError, match=r"t\.sqlite is damaged"):
        log.create([TopicSpec("t", 1)])
    with pytest.raises(LogError, match="does not exist"):
        log.ends("other")
    with pytest.raises(RunFileError, match="unknown scheme 'carrier'"):
        open_log("carrier://pigeon")


def test_retention_by_age_and_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.sqlite.topic.RETENTION_CHECK_SECONDS", 0.0)
    log = SqliteLog(tmp_path)
    log.create([TopicSpec("old", 1, retention_seconds=100.0), TopicSpec("big", 1, retention_bytes=5000)])
    producer = log.producer()
    now = time.time()
    monkeypatch.setattr("broker.sqlite.topic.time.time", lambda: now - 200)
    for _ in range(5):
        producer.send("old", b"k", b"v")
    producer.flush()
    monkeypatch.setattr("broker.sqlite.topic.time.time", lambda: now)
    producer.send("old", b"k", b"v")
    for _ in range(10):
        producer.send("big", b"k", bytes(1000))
        producer.flush()
    assert log.begins("old") == {0: 5} and log.ends("old") == {0: 6}
    assert log.begins("big") == {0: 5}
    producer.close()
    log.close()


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5, 6])
def test_a_read_that_fails_half_way_costs_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    log = SqliteLog(tmp_path)
    log.create([TopicSpec("t", 3), TopicSpec("u", 3)])
    producer = log.producer()
    sent = [(topic, partition, number) for topic in "tu" for partition in range(3) for number in range(2)]
    for topic, partition, number in sent:
        producer.send(topic, b"k", str(number).encode(), partition)
    producer.flush()
    producer.close()
    read, calls = TopicFile.read, itertools.count(1)

    def failing_once(file: TopicFile, *arguments: Any) -> list[Record]:
        if next(calls) == failing:
            raise LogUnavailable("the disk is away")
        return read(file, *arguments)

    monkeypatch.setattr(TopicFile, "read", failing_once)
    consumer, got, failures = log.consumer(["t", "u"], "g", "m"), [], 0
    for _ in range(6):
        try:
            got += [(r.topic, r.partition, int(r.value)) for r in consumer.poll(100)]
        except LogUnavailable:
            failures += 1
    assert sorted(got) == sent
    assert failures == (1 if failing <= 3 else 0)
    consumer.close()
    log.close()


def test_a_record_that_is_sent_again_after_a_failure_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.sqlite.log.IN_FLIGHT_BYTES", 10)
    monkeypatch.setattr("broker.patience.RETRY_SECONDS", 0.0)
    log = SqliteLog(tmp_path)
    log.create([TopicSpec("t", 1)])
    append, calls = TopicFile.append, itertools.count(1)

    def failing_once(file: TopicFile, rows: Sequence[Row]) -> list[Position]:
        if next(calls) == 1:
            raise LogUnavailable("the disk is away")
        return append(file, rows)

    monkeypatch.setattr(TopicFile, "append", failing_once)
    producer = PatientProducer(log.producer(), Stop(), lambda away: None)
    values = [f"{i:08}".encode() for i in range(6)]
    for value in values:
        producer.send("t", b"k", value)
    assert producer.flush() == [Position(0, offset) for offset in range(6)]
    assert [r.value for r in log.reader("t").poll()] == values
    producer.close()
    log.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The wall clock of the groups, at ``now``."""
    clock = SimpleNamespace(now=1000.0, time=lambda: clock.now)
    monkeypatch.setattr("broker.sqlite.groups.time", clock)
    return clock


def test_a_clock_that_is_set_back_keeps_no_place_of_a_dead_member(tmp_path: Path, clock: SimpleNamespace) -> None:
    groups = GroupsFile(tmp_path)

    def members(name: str, joining: bool = False) -> list[str]:
        return [member for member, _ in groups.beat("g", name, name, ["t"], 5.0, joining=joining)]

    members("dead", joining=True)
    assert members("a", joining=True) == ["a", "dead"]
    clock.now -= 2.0
    assert members("a") == ["a", "dead"], "it may live: a small step costs nobody a place"
    clock.now -= 500.0
    assert members("a") == ["a"]
    groups.leave("g", "a", "a")
    members("dead", joining=True)
    with pytest.raises(LogError, match="living member, 'dead'"):
        groups.delete(["g"], 5.0)
    clock.now -= 500.0
    groups.delete(["g"], 5.0)
    groups.close()


def test_a_member_whose_lease_ran_out_commits_until_another_has_its_partitions(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    groups, partitions = GroupsFile(tmp_path), {"t": 1}
    groups.beat("g", "b", "b", ["t"], 5.0, joining=True)
    clock.now += 60.0
    groups.commit("g", "b", "b", {("t", 0): 7}, partitions)
    assert groups.committed("g", "t") == {0: 7}
    groups.beat("g", "a", "a", ["t"], 5.0, joining=True)
    groups.commit("g", "b", "b", {("t", 0): 9}, partitions)
    assert groups.committed("g", "t") == {0: 7}
    groups.close()


@pytest.mark.long
def test_who_was_stopped_in_the_middle_of_an_append_is_named_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.sqlite.flock.PATIENCE_SECONDS", 0.5)
    log = SqliteLog(tmp_path)
    log.create([TopicSpec("t", 1)])
    producer = log.producer()
    producer.send("t", b"k", b"v")
    with stopped_in_an_append(tmp_path / "t.sqlite") as process:
        for _ in range(2):
            with pytest.raises(LogUnavailable, match=rf"t\.sqlite has been locked .* `kill -CONT {process.pid}`"):
                producer.flush()
        process.send_signal(signal.SIGCONT)
        assert process.wait(HANG) == 0
    assert producer.flush() == [Position(0, 0)] and log.ends("t") == {0: 1}
    producer.close()
    log.close()


def test_a_restarted_member_waits_for_no_lease(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log", lease_seconds=10 * HANG)
    log.create([TopicSpec("t", 1)])
    with closing(log.producer()) as producer:
        producer.send("t", b"k", b"v")
        producer.flush()
    older = log.consumer(["t"], "g", "a")
    until(lambda: older.poll(8, 0.05), "the record")
    newer = log.consumer(["t"], "g", "a")
    assert [r.value for r in until(lambda: newer.poll(8, 0.05), "the record, once more")] == [b"v"]
    for thing in (older, newer, log):
        thing.close()
