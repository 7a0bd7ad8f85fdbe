"""The embedded log over weeks: trims that give disk back beside writers, retention, wakes and waits that cost little, files of older versions."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import until

from broker.errors import OffsetExpired
from broker.log import Producer, TopicSpec
from broker.messages import Position
from broker.open import open_log
from broker.sqlite import sweep, vacuum
from broker.sqlite.arrival import Arrivals
from broker.sqlite.log import SqliteLog
from broker.sqlite.topic import TopicFile

SPAWN = multiprocessing.get_context("spawn")
OLD = Path(__file__).resolve().parents[1] / "fixtures" / "v1" / "run" / "log"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    log = SqliteLog(tmp_path)
    yield log
    log.close()


def fill(producer: Producer, topic: str, count: int, size: int = 1000, partitions: int = 4) -> None:
    for i in range(count):
        producer.send(topic, b"k", bytes(size), i % partitions)
    producer.flush()


def on_disk(directory: Path, topic: str) -> int:
    return sum(path.stat().st_size for path in directory.glob(f"{topic}.sqlite*"))


def test_a_trim_gives_disk_back_while_others_write(log: SqliteLog, tmp_path: Path) -> None:
    log.create([TopicSpec("t", 4)])
    producer = log.producer()
    fill(producer, "t", 12_000)
    before, ends, done, beside = on_disk(tmp_path, "t"), log.ends("t"), threading.Event(), [0]

    def write() -> None:
        writer = SqliteLog(tmp_path).producer()
        while not done.is_set():
            fill(writer, "t", 4, size=10)
            beside[0] += 1
            done.wait(0.005)
        writer.close()

    thread = threading.Thread(target=write)
    thread.start()
    log.trim("t", ends)
    done.set()
    thread.join()
    assert beside[0] > 3, "between its slices others have the lock"
    assert log.begins("t") == ends and sum(log.ends("t").values()) == 12_000 + 4 * beside[0]
    left = sum(log.ends("t").values()) - 12_000
    reader = log.reader("t")
    assert len(reader.poll(100_000)) == left
    reader.close()
    log.trim("t", log.ends("t"))
    assert before > 12_000_000 and on_disk(tmp_path, "t") < before / 20


def trim_all(directory: str) -> None:
    sweep.PAUSE_SECONDS, sweep.MOST_BYTES = 0.2, sweep.FIRST_BYTES
    log = SqliteLog(directory)
    log.trim("t", log.ends("t"))


def test_a_trim_that_was_killed_is_taken_up_by_the_next(log: SqliteLog, tmp_path: Path) -> None:
    log.create([TopicSpec("t", 4)])
    producer = log.producer()
    fill(producer, "t", 6000)
    process = SPAWN.Process(target=trim_all, args=(str(tmp_path),), daemon=True)
    process.start()
    ends = log.ends("t")
    until(lambda: log.begins("t") == ends)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()

    def rows() -> int:
        with sqlite3.connect(tmp_path / "t.sqlite") as db:
            return int(db.execute("SELECT COUNT(*) FROM records").fetchone()[0])

    assert rows() > 0, "it was killed in the middle"
    with pytest.raises(OffsetExpired):
        log.reader("t", {0: 0}).poll()
    fill(producer, "t", 4)
    log.trim("t", ends)
    assert rows() == 4 and len(log.reader("t").poll()) == 4


def test_a_log_of_version_0_1_is_read_written_and_trimmed_and_says_how_disk_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "FIRST_PAGES", 2)
    shutil.copytree(OLD, tmp_path / "log")
    log = open_log(f"sqlite://{tmp_path / 'log'}")
    topic = "old.trajectories"
    before = log.ends(topic)
    producer = log.producer()
    producer.send(topic, b"k", b"new", 0)
    (position,) = producer.flush()
    assert position == Position(0, before[0])
    with caplog.at_level(logging.WARNING, "log"):
        log.trim(topic, before)
    (said,) = [r.getMessage() for r in caplog.records]
    assert "older version" in said and f"python -m broker.sqlite.vacuum {tmp_path / 'log'}" in said
    assert [r.value for r in log.reader(topic).poll()] == [b"new"]
    producer.close()
    log.close()
    size = on_disk(tmp_path / "log", topic)
    assert vacuum.main([str(tmp_path / "log")]) == 0
    assert on_disk(tmp_path / "log", topic) < size
    log = open_log(f"sqlite://{tmp_path / 'log'}")
    assert [r.value for r in log.reader(topic).poll()] == [b"new"] and log.begins(topic) == before
    caplog.clear()
    log.trim(topic, log.ends(topic))
    assert not caplog.records
    log.close()


def test_a_wake_costs_the_same_statements_however_many_partitions_there_are(log: SqliteLog) -> None:
    cost = {}
    for partitions in (2, 512):
        log.create([TopicSpec(f"t{partitions}", partitions)])
        producer, reader = log.producer(), log.reader(f"t{partitions}")
        assert reader.poll() == []
        producer.send(f"t{partitions}", b"k", b"v", partitions - 1)
        producer.flush()
        statements: list[str] = []
        reader._file._file.db.set_trace_callback(statements.append)
        assert len(reader.poll()) == 1
        cost[partitions] = len(statements)
        reader.close()
    assert cost[2] == cost[512] <= 3


def test_a_retention_check_does_not_look_at_what_is_kept(log: SqliteLog, tmp_path: Path) -> None:
    """Counted in steps of SQLite's virtual machine: as many for 8,000 kept records as for 100."""
    log.create([TopicSpec("t", 4, retention_seconds=1e6, retention_bytes=10**9)])
    producer, cost = log.producer(), []
    for count in (100, 8000):
        fill(producer, "t", count)
        file, steps = TopicFile(tmp_path, "t"), [0]
        with sqlite3.connect(tmp_path / "t.sqlite") as db:
            db.execute("DELETE FROM meta WHERE key = 'retained'")

        def step(steps: list[int] = steps) -> None:
            steps[0] += 1

        file._file.db.set_progress_handler(step, 1)
        file._retain(time.time())
        cost.append(steps[0])
        file.close()
    assert 0 < cost[1] < 1.2 * cost[0] < 2000


def test_one_producer_looks_for_what_has_expired_and_the_others_rely_on_it(log: SqliteLog, tmp_path: Path) -> None:
    log.create([TopicSpec("t", 1, retention_seconds=0.001)])
    first = log.producer()
    for _ in range(2):
        first.send("t", b"k", b"v")
        first.flush()
        time.sleep(0.01)
    looked = log.begins("t")
    second = log.producer()
    second.send("t", b"k", b"v")
    second.flush()
    assert log.begins("t") == looked, "it was looked at a moment ago"


def test_what_has_expired_is_removed_a_little_at_a_time(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.sqlite.topic.RETENTION_ROWS", 30)
    monkeypatch.setattr("broker.sqlite.topic.RETENTION_PAUSE_SECONDS", 0.0)
    log.create([TopicSpec("t", 1, retention_bytes=5000)])
    producer = log.producer()
    fill(producer, "t", 100, partitions=1)
    begins = []
    for _ in range(6):
        producer.send("t", b"k", bytes(1000), 0)
        producer.flush()
        begins.append(log.begins("t")[0])
    assert begins[0] <= 60 and begins[-1] >= 95, begins
    assert len(log.reader("t", log.begins("t")).poll()) == log.ends("t")[0] - begins[-1]


def test_a_poll_brings_a_bounded_number_of_bytes_and_the_next_one_the_rest(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.sqlite.cursor.POLL_BYTES", 10_000)
    monkeypatch.setattr("broker.sqlite.reading.POLL_BYTES", 10_000)
    log.create([TopicSpec("t", 4), TopicSpec("u", 4)])
    producer = log.producer()
    fill(producer, "t", 40)
    fill(producer, "u", 40)
    consumer = log.consumer(["t", "u"], "g", "m")
    got = []
    while records := consumer.poll(1000):
        assert sum(len(r.value) for r in records) <= 11_000
        got += records
    assert len({(r.topic, r.position) for r in got}) == len(got) == 80
    consumer.close()


def arrive(directory: str) -> None:
    producer = SqliteLog(directory).producer()
    producer.send("t", b"k", str(time.time()).encode())
    producer.flush()


@pytest.mark.long
@pytest.mark.parametrize("inotify", [True, False])
def test_who_waits_is_woken_by_another_process(log: SqliteLog, tmp_path: Path, inotify: bool) -> None:
    """Without inotify (its instances are used up) waiting is naps."""
    log.create([TopicSpec("t", 1)])
    reader = log.reader("t")
    if not inotify:
        reader._arrivals = Arrivals([tmp_path / "no such file"])
    assert reader.poll(10, 0.05) == []
    assert (reader._arrivals._watch is not None) == inotify
    process = SPAWN.Process(target=arrive, args=(str(tmp_path),))
    process.start()
    assert len(reader.poll(10, 30.0)) == 1
    process.join()
    reader.close()
