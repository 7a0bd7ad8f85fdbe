"""One contract for every log engine: what holds here holds on all of them, and on one that is plugged in from a file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import HANG

from broker.errors import HeldByAnother, LogError, MemberReplaced, OffsetExpired
from broker.log import Consumer, Log, Record, TopicSpec, limit_of, partition_of
from broker.messages import DeadLetter, Position, encode
from broker.open import open_log as open_any
from broker.watermark import Watermark

SPAWN = multiprocessing.get_context("spawn")
PLUGGED = Path(__file__).resolve().parent / "plugged"


def open_log(url: str) -> Log:
    """The log at ``url``, as a run file beside ``folder_log.py`` would have it."""
    return open_any(url, {"folder": "folder_log.py:FolderLog"}, PLUGGED)


@pytest.fixture(params=["sqlite", "folder", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param != "kafka":
        return f"{request.param}://{tmp_path / 'log'}"
    server = request.getfixturevalue("kafka")
    return f"{server.url}?replication=1"


@pytest.fixture
def log(url: str) -> Iterator[Log]:
    log = open_log(url)
    if url.startswith("kafka"):
        empty_cluster(url)
    log.create([TopicSpec("t", 4), TopicSpec("one", 1), TopicSpec("newest", 1, compacted=True)])
    yield log
    log.close()


def empty_cluster(url: str) -> None:
    """Remove what the test before has left."""
    from kafka.admin import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=url.removeprefix("kafka://").partition("?")[0])
    deadline = time.monotonic() + HANG
    while True:
        topics = [t for t in admin.list_topics() if not t.startswith("__")]
        groups = [g["group_id"] for g in admin.list_groups()]
        if not topics and not groups:
            break
        assert time.monotonic() < deadline, (topics, groups)
        if topics:
            admin.delete_topics(topics, raise_errors=False)
        if groups:
            admin.delete_groups(groups)
        time.sleep(0.1)
    admin.close()


def fill(log: Log, topic: str, count: int, partition: int | None = None, start: int = 0) -> list[Position]:
    producer = log.producer()
    for i in range(start, start + count):
        producer.send(topic, f"k{i}".encode(), f"v{i}".encode(), partition)
    positions = producer.flush()
    producer.close()
    return positions


def drain(consumer: Consumer, count: int) -> list[Record]:
    out: list[Record] = []
    deadline = time.monotonic() + HANG
    while len(out) < count and time.monotonic() < deadline:
        out.extend(consumer.poll(64, 0.05))
    return out


def test_positions_are_dense_and_in_order_of_sending(log: Log) -> None:
    positions = fill(log, "t", 50)
    for partition in range(4):
        offsets = [p.offset for p in positions if p.partition == partition]
        assert offsets == list(range(len(offsets)))
    assert [p.partition for p in positions] == [partition_of(f"k{i}".encode(), 4) for i in range(50)]
    assert sum(log.ends("t").values()) == 50
    assert set(log.begins("t").values()) == {0}


def test_reader_reads_in_order_from_its_positions(log: Log) -> None:
    fill(log, "one", 20)
    reader = log.reader("one", {0: 5})
    records = reader.poll(100, 10.0)
    assert [r.offset for r in records] == list(range(5, 20))
    assert records[0].value == b"v5" and records[0].key == b"k5" and records[0].topic == "one"
    assert reader.offsets() == {0: 20}
    assert reader.poll(100, 0.0) == []
    fill(log, "one", 1, start=20)
    assert [r.value for r in reader.poll(100, 5.0)] == [b"v20"]
    reader.seek({0: 19})
    assert [r.offset for r in reader.poll(1, 10.0)] == [19]
    reader.close()


def test_get_returns_exactly_these_records_in_this_order(log: Log) -> None:
    positions = fill(log, "t", 30)
    reader = log.reader("t")
    wanted = [positions[i] for i in (7, 3, 29, 3)]
    assert [r.value for r in reader.get(wanted)] == [b"v7", b"v3", b"v29", b"v3"]
    with pytest.raises(LogError):
        reader.get([Position(0, 10_000)])
    reader.close()


def test_unflushed_records_are_not_there_and_a_second_flush_is_empty(log: Log) -> None:
    producer = log.producer()
    producer.send("one", b"k", b"v")
    assert log.ends("one") == {0: 0}
    assert producer.flush() == [Position(0, 0)]
    assert producer.flush() == []
    producer.close()


def test_wrong_topic_partition_and_size_are_refused(log: Log) -> None:
    producer = log.producer()
    with pytest.raises(LogError, match="nowhere"):
        producer.send("nowhere", b"", b"")
    with pytest.raises(LogError, match="partition 9"):
        producer.send("t", b"", b"", 9)
    with pytest.raises(LogError, match="bytes"):
        producer.send("t", b"", bytes(17 << 20))
    producer.close()


@pytest.mark.long
def test_members_share_the_partitions_and_take_over_what_a_leaver_had(log: Log) -> None:
    fill(log, "t", 40)
    first = log.consumer(["t"], "g", "a")
    second = log.consumer(["t"], "g", "b")
    deadline = time.monotonic() + HANG
    while not len(first.assignment()) == len(second.assignment()) == 2 and time.monotonic() < deadline:
        first.poll(0)
        second.poll(0)
        time.sleep(0.05)
    assert len(first.assignment()) == len(second.assignment()) == 2
    assert not first.assignment() & second.assignment()
    second.close()
    while len(first.assignment()) != 4 and time.monotonic() < deadline:
        first.poll(0)
        time.sleep(0.05)
    assert len(drain(first, 40)) >= 40
    first.close()


def test_what_is_not_committed_comes_again_and_what_is_does_not(log: Log) -> None:
    fill(log, "one", 10)
    consumer = log.consumer(["one"], "g", "a")
    records = drain(consumer, 10)
    mark = Watermark()
    for record in records:
        mark.start(record)
    for i in (0, 1, 2, 4, 5):
        mark.done(records[i])
    consumer.commit(mark.offsets())
    consumer.close()
    assert log.committed("g", "one") == {0: 3}
    assert log.lag("g", "one") == 7
    again = log.consumer(["one"], "g", "a")
    assert [r.offset for r in drain(again, 7)] == list(range(3, 10))
    again.close()
    assert log.groups() == {"g": ("one",)}


def test_a_group_without_offsets_begins_at_the_first_record_that_matters(log: Log) -> None:
    fill(log, "one", 10)
    fill(log, "t", 3, partition=2)
    consumer = log.consumer(["one", "t"], "g", "a", lambda topic: {0: 7} if topic == "one" else {})
    got = drain(consumer, 6)
    assert sorted((r.topic, r.offset) for r in got) == [("one", o) for o in (7, 8, 9)] + [("t", o) for o in (0, 1, 2)]
    consumer.commit({("one", 0): 8})
    consumer.close()
    again = log.consumer(["one"], "g", "a", lambda topic: {0: 2})
    assert [r.offset for r in drain(again, 2)] == [8, 9], "what was committed goes before"
    again.close()


def test_topics_and_groups_are_deleted_once_nobody_is_a_member(log: Log) -> None:
    fill(log, "one", 3)
    consumer = log.consumer(["one"], "g", "a")
    drain(consumer, 3)
    consumer.commit({("one", 0): 3})
    with pytest.raises(LogError, match=r"group g has .*living member"):
        log.delete(["one"], ["g", "nobody"])
    consumer.close()
    deadline = time.monotonic() + HANG
    while True:
        try:
            log.delete(["one", "nothing"], ["g", "nobody"])
            break
        except LogError:  # the place of a member that has left is gone in a moment
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert set(log.topics()) == {"t", "newest"} and log.groups() == {}
    log.create([TopicSpec("one", 1)])
    assert log.ends("one") == {0: 0} and fill(log, "one", 1) == [Position(0, 0)]


def test_groups_do_not_disturb_each_other(log: Log) -> None:
    fill(log, "one", 5)
    for group in ("g", "h"):
        consumer = log.consumer(["one"], group, "a")
        assert len(drain(consumer, 5)) == 5
        consumer.close()


def test_a_restarted_static_member_takes_its_place_and_the_older_one_cannot_commit(log: Log) -> None:
    fill(log, "one", 10)
    older = log.consumer(["one"], "g", "a")
    assert len(drain(older, 10)) == 10
    newer = log.consumer(["one"], "g", "a")
    assert len(drain(newer, 10)) == 10
    older.commit({("one", 0): 10})
    assert log.committed("g", "one") == {}
    newer.commit({("one", 0): 4})
    assert log.committed("g", "one") == {0: 4}
    newer.close()
    older.close()


def test_two_members_of_one_name_cannot_both_have_its_place(log: Log) -> None:
    """As two machines with the same ``--name``: the older one is told, and does not wait for ever."""
    older = log.consumer(["t"], "g", "vowels-0")
    newer = log.consumer(["t"], "g", "vowels-0")
    with pytest.raises(MemberReplaced, match=r"place of vowels-0 in group g.*newer process of that name.*--name"):
        while True:
            older.poll(1, 0.5)
    assert older.assignment() == frozenset()
    with pytest.raises(MemberReplaced):
        older.poll(0)
    fill(log, "t", 3)
    got = 0
    while got < 3:
        got += len(newer.poll(3, 1.0))
    older.close()
    newer.close()


def hold_partitions(url: str, ready: object) -> None:
    consumer = open_log(url).consumer(["t"], "g", "dying")
    consumer.poll(16, 1.0)
    ready.set()  # type: ignore[attr-defined]
    while True:
        consumer.poll(0)
        time.sleep(0.1)


@pytest.mark.long
def test_a_killed_member_loses_its_partitions_to_the_others(log: Log, url: str) -> None:
    fill(log, "t", 40)
    ready = SPAWN.Event()
    process = SPAWN.Process(target=hold_partitions, args=(url, ready), daemon=True)
    process.start()
    assert ready.wait(HANG)
    survivor = log.consumer(["t"], "g", "survivor")
    deadline = time.monotonic() + HANG
    while len(survivor.assignment()) != 2:
        assert time.monotonic() < deadline
        survivor.poll(0)
        time.sleep(0.05)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert len({r.value for r in drain(survivor, 40)}) == 40
    survivor.close()


def test_trimmed_positions_are_reported_by_name(log: Log) -> None:
    fill(log, "one", 10)
    reader = log.reader("one", {0: 0})
    log.trim("one", {0: 6})
    assert log.begins("one") == {0: 6}
    with pytest.raises(OffsetExpired, match=r"one\[0\] offset 0"):
        reader.poll(10, 10.0)
    with pytest.raises(OffsetExpired):
        reader.get([Position(0, 2)])
    reader.seek({0: 6})
    assert [r.offset for r in reader.poll(10, 10.0)] == [6, 7, 8, 9]
    reader.close()


def test_a_compacted_topic_keeps_the_newest_record_of_a_key(log: Log) -> None:
    producer = log.producer()
    for i in range(10):
        producer.send("newest", b"ab"[i % 2 : i % 2 + 1], str(i).encode())
        producer.flush()
    producer.close()
    reader = log.reader("newest")
    newest = {r.key: r.value for r in reader.poll(100, 10.0)}
    assert newest == {b"a": b"8", b"b": b"9"}
    reader.close()


def test_settings_that_would_lose_data_are_refused(log: Log) -> None:
    log.create([TopicSpec("t", 4)])
    with pytest.raises(LogError, match="partitions"):
        log.create([TopicSpec("t", 5)])
    with pytest.raises(LogError, match="compacted"):
        log.create([TopicSpec("one", 1, compacted=True)])
    assert log.topics()["t"] == TopicSpec("t", 4)


def hold_name(url: str, ready: object) -> None:
    producer = open_log(url).exclusive_producer("learner", "the first learner")
    producer.send("one", b"k", b"v")
    producer.flush()
    ready.set()  # type: ignore[attr-defined]
    time.sleep(3600)


def test_an_exclusive_producer_has_one_holder_until_it_dies(log: Log, url: str) -> None:
    ready = SPAWN.Event()
    process = SPAWN.Process(target=hold_name, args=(url, ready), daemon=True)
    process.start()
    assert ready.wait(HANG)
    with pytest.raises(HeldByAnother, match="the first learner"):
        log.exclusive_producer("learner", "the second learner")
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    producer = log.exclusive_producer("learner", "the second learner")
    producer.send("one", b"k", b"w")
    (position,) = producer.flush()
    assert [r.value for r in log.reader("one").get([Position(0, 0), position])] == [b"v", b"w"]
    producer.close()


def append_many(url: str, worker: int, count: int) -> None:
    producer = open_log(url).producer()
    for i in range(count):
        producer.send("t", f"{worker}".encode(), f"{worker}/{i}".encode(), worker % 4)
        if i % 10 == 9:
            producer.flush()
    producer.flush()


@pytest.mark.long
def test_processes_that_append_at_once_lose_and_double_nothing(log: Log, url: str) -> None:
    workers = [SPAWN.Process(target=append_many, args=(url, w, 200)) for w in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(HANG)
        assert worker.exitcode == 0
    reader = log.reader("t")
    values: list[bytes] = []
    while len(values) < 800:
        records = reader.poll(100, 5.0)
        assert records
        values.extend(r.value for r in records)
    reader.close()
    assert len(set(values)) == len(values) == 800
    for w in range(4):
        assert [v for v in values if v.startswith(f"{w}/".encode())] == [f"{w}/{i}".encode() for i in range(200)]


def test_a_dead_letter_holds_a_record_of_any_size_that_its_topic_takes() -> None:
    assert limit_of("run.trajectories", 1 << 20) == 1 << 20
    letter = DeadLetter("run.trajectories", 0, 7, b"key", bytes(1 << 20), "e" * 2000, "worker")
    assert len(encode(letter)) <= limit_of("run.deadletters", 1 << 20)
