"""What a process does with the log is counted: bytes, failures by reason, dead letters, and the oldest record that is not done."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from patience import HANG
from prometheus_client import CollectorRegistry

from broker.errors import LogError
from broker.log import TopicSpec
from broker.metered import MeteredLog
from broker.sqlite.log import SqliteLog
from monitoring.metrics import BrokerMetrics


def test_everything_is_counted_once(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    log = MeteredLog(SqliteLog(tmp_path), BrokerMetrics(registry), "dead")
    log.create([TopicSpec("t"), TopicSpec("dead")])

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"headrace_{name}", labels)

    producer = log.producer()
    producer.send("t", b"k", b"12345")
    producer.send("dead", b"k", b"123")
    assert len(producer.flush()) == 2
    assert (value("bytes_total", direction="out"), value("dead_letters_total")) == (8, 1)
    with pytest.raises(LogError):
        producer.send("nowhere", b"k", b"1")
    assert value("produce_errors_total", topic="nowhere", reason="LogError") == 1

    consumer = log.consumer(["t"], "g", "m")
    assert value("oldest_message_age_seconds", topic="t") == 0
    deadline = time.monotonic() + HANG
    while not (records := consumer.poll(8, 0.1)):
        assert time.monotonic() < deadline
    time.sleep(0.02)
    age = value("oldest_message_age_seconds", topic="t")
    assert age is not None and 0.02 <= age < 60
    assert value("bytes_total", direction="in") == 5
    consumer.commit({("t", 0): records[0].offset + 1})
    assert value("oldest_message_age_seconds", topic="t") == 0

    reader = log.reader("t")
    assert [r.value for r in reader.poll()] == [b"12345"] and reader.get([records[0].position])
    assert value("bytes_total", direction="in") == 15
    for part in (reader, consumer, producer, log):
        part.close()


def test_an_append_that_fails_is_counted_for_each_topic_it_was_for(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    log = MeteredLog(SqliteLog(tmp_path, max_pages=16), BrokerMetrics(registry), "dead")
    log.create([TopicSpec("t")])
    producer = log.producer()
    producer.send("t", b"k", bytes(10_000_000))
    with pytest.raises(LogError):
        producer.flush()
    assert registry.get_sample_value("headrace_produce_errors_total", {"topic": "t", "reason": "LogFull"}) == 1
    log.close()
