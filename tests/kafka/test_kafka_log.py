"""What is particular to the distributed log: settings, secrets, long work, retention, three brokers."""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patience import HANG, until
from prometheus_client.parser import text_string_to_metric_families

from broker.errors import HeldByAnother, LogError, LogUnavailable, LogUnsettled, OffsetExpired, RunFileError
from broker.kafka.server import KafkaServer, cluster
from broker.kafka.settings import KafkaSettings
from broker.log import Log, TopicSpec
from broker.messages import Position
from broker.open import open_log
from monitoring.ports import free_ports

pytestmark = pytest.mark.kafka


@pytest.fixture
def log(kafka: KafkaServer) -> Iterator[Log]:
    log = open_log(f"{kafka.url}?replication=1")
    yield log
    log.close()


def fill(log: Log, topic: str, count: int, partition: int = 0) -> None:
    producer = log.producer()
    for i in range(count):
        producer.send(topic, b"k", f"v{i}".encode(), partition)
    producer.flush()
    producer.close()


def test_urls_and_the_environment_are_read_and_secrets_not_shown() -> None:
    found = KafkaSettings.parse(
        "kafka://a:9092,b:9093?replication=3&compression=lz4",
        {"HEADRACE_KAFKA_SASL_PLAIN_PASSWORD": "tip-top-secret", "HEADRACE_KAFKA_SECURITY_PROTOCOL": "SASL_SSL"},
    )
    assert found.servers == ("a:9092", "b:9093") and found.replication == 3 and found.compression == "lz4"
    assert found.common["sasl_plain_password"] == "tip-top-secret" and "tip-top" not in repr(found)
    for url, why in {
        "kafka://": "HOST:PORT",
        "kafka://a": "HOST:PORT",
        "kafka://a:1?replicaton=3": "did you mean 'replication'",
        "kafka://a:1?compression=lz5": "did you mean 'lz4'",
        "kafka://a:1?replication=x": "whole number",
    }.items():
        with pytest.raises(RunFileError, match=why):
            KafkaSettings.parse(url, {})
    with pytest.raises(RunFileError, match="HEADRACE_KAFKA_SASL_PASSWORD is not known"):
        KafkaSettings.parse("kafka://a:1", {"HEADRACE_KAFKA_SASL_PASSWORD": "x"})


def test_a_token_is_read_from_its_file_each_time_and_a_wrong_name_is_near_its_own_kind(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    found = KafkaSettings.parse("kafka://a:1", {"HEADRACE_KAFKA_SASL_OAUTH_TOKEN_FILE": str(token)})
    provider = found.common["sasl_oauth_token_provider"]
    assert provider.token() == "first" and "first" not in repr(found)
    token.write_text("second")
    assert provider.token() == "second", "tokens are renewed by others"
    with pytest.raises(RunFileError, match="no such file"):
        KafkaSettings.parse("kafka://a:1", {"HEADRACE_KAFKA_SASL_OAUTH_TOKEN_FILE": str(tmp_path / "none")})
    with pytest.raises(RunFileError, match="did you mean 'sasl_"):
        KafkaSettings.parse("kafka://a:1", {"HEADRACE_KAFKA_SASL_PASSWORD": "x"})


def test_a_cluster_that_is_not_there_is_named() -> None:
    (port,) = free_ports(1)
    with pytest.raises(LogUnavailable, match=f"127.0.0.1:{port}"):
        open_log(f"kafka://127.0.0.1:{port}")


def test_looking_for_a_cluster_that_is_not_there_keeps_neither_threads_nor_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.kafka.settings.BOOTSTRAP_SECONDS", 0.1)
    (port,) = free_ports(1)

    def held() -> tuple[int, int]:
        """Threads, and event loops: refused sockets are left to the garbage collector."""
        polled = [path for path in Path("/proc/self/fd").iterdir() if "eventpoll" in str(path.resolve())]
        return threading.active_count(), len(polled)

    before = held()
    for _ in range(5):
        with pytest.raises(LogUnavailable):
            open_log(f"kafka://127.0.0.1:{port}")
    assert all(now <= then for now, then in zip(held(), before, strict=True))


def test_a_member_that_loses_its_place_unnoticed_joins_again(log: Log) -> None:
    """Its heartbeats end without a word, and it commits nothing: the group forgets it while it reads on."""
    log.create([TopicSpec("place.t", 4)])
    consumer: Any = log.consumer(["place.t"], "place.g", "one")
    parts = frozenset(("place.t", p) for p in range(4))
    deadline = time.monotonic() + HANG
    while consumer.assignment() != parts:
        assert time.monotonic() < deadline
    consumer._consumer._coordinator._close_heartbeat()
    assert log.members("place.g") == {"one"}  # type: ignore[attr-defined]
    while log.members("place.g"):  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    while consumer.assignment() != parts or log.members("place.g") != {"one"}:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    fill(log, "place.t", 3)
    assert len(consumer.poll(3, 10.0)) > 0
    consumer.close()


class Client:
    """A Kafka client, of a group that has forgotten the first one. The second finds no cluster, and no check comes after it."""

    made = 0

    def __init__(self, **settings: object) -> None:
        Client.made += 1
        self._closed = False
        if Client.made == 2:
            from broker.kafka import consumer

            consumer.CHECK_SECONDS = 3600.0
            raise kafka_errors().KafkaTimeoutError("Unable to bootstrap")

    def poll(self, milliseconds: int, records: int) -> dict[object, object]:
        if self._closed:
            raise kafka_errors().IllegalStateError("this client is closed")
        time.sleep(0.005)
        return {}

    def close(self, **how: object) -> None:
        self._closed = True

    def group_metadata(self) -> Any:
        return SimpleNamespace(member_id="id")

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0}

    def subscribe(self, topics: list[str], listener: object) -> None:
        """It is assigned nothing."""

    def assignment(self) -> set[object]:
        return set()

    paused = assignment

    @staticmethod
    def holder(group: str, instance: str) -> str:
        return ""

    @staticmethod
    def leave(group: str, instance: str) -> None:
        """It was never there."""


def kafka_errors() -> Any:
    from kafka import errors

    return errors


def test_a_member_that_finds_no_cluster_to_join_again_tries_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from broker.kafka import consumer as module

    monkeypatch.setattr(module, "KafkaConsumer", Client)
    monkeypatch.setattr(Client, "made", 0)
    monkeypatch.setattr("broker.kafka.reader.PROBE_SECONDS", 3600.0)
    monkeypatch.setattr(module, "JOIN_SECONDS", 0.0)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.0)
    groups: Any = Client
    consumer = module.LogConsumer(KafkaSettings(("127.0.0.1:1",)), ["t"], "g", "m", lambda topic: {}, groups)
    with pytest.raises(LogUnavailable, match="joining group g"):
        consumer.poll(1, 30.0)
    deadline = time.monotonic() + HANG
    while Client.made < 3:
        assert time.monotonic() < deadline
        consumer.poll(1, 0.05)
    consumer.close()


def test_a_topic_that_would_lose_records_is_refused(kafka: KafkaServer, log: Log) -> None:
    from kafka.admin import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=kafka.address)
    made = {
        "short": {"retention.ms": "60000"},
        "small": {"retention.ms": "-1", "max.message.bytes": "1000000"},
        "compact": {"cleanup.policy": "compact"},
        "atonce": {"retention.ms": "0"},
        "nothing": {"retention.ms": "-1", "retention.bytes": "0"},
        "both": {"cleanup.policy": "compact,delete", "retention.ms": "-1"},
    }
    admin.create_topics(
        {f"refused.{n}": {"num_partitions": 2, "replication_factor": 1, "configs": c} for n, c in made.items()},
        wait_for_metadata=True,
    )
    admin.close()
    for name, why in (
        ("short", "retention.ms = 60000.*set it to -1"),
        ("small", "max.message.bytes"),
        ("compact", "compacted.*cleanup.policy=delete"),
        ("atonce", "retention.ms = 0.*set it to -1"),
        ("nothing", "retention.bytes = 0"),
    ):
        with pytest.raises(LogError, match=why):
            log.create([TopicSpec(f"refused.{name}", 2)])
    with pytest.raises(LogError, match=r"removes records by age: set cleanup\.policy=compact"):
        log.create([TopicSpec("refused.both", 2, compacted=True)])
    with pytest.raises(LogError, match="raise it to at least 120000"):
        log.create([TopicSpec("refused.short", 2, retention_seconds=120)])
    assert log.topics()["refused.atonce"].retention_seconds > 0, "0 is not for ever on a cluster"
    log.create([TopicSpec("refused.short", 2, retention_seconds=60)])


def test_exact_positions_cost_little_more_than_their_records(kafka: KafkaServer, log: Log) -> None:
    log.create([TopicSpec("exact.t", 1)])
    producer = log.producer()
    for i in range(2000):
        producer.send("exact.t", b"k", f"{i:04}".encode() * 640, 0)
        if i % 16 == 15:
            producer.flush()
    producer.flush()
    producer.close()
    reader = log.reader("exact.t")
    wanted = [Position(0, 100 * i + j) for i in range(2, 18) for j in (0, 7)]
    assert [r.value[:4] for r in reader.get(wanted)] == [f"{p.offset:04}".encode() for p in wanted]
    sent = numbers(kafka)["kafka_topic_bytesout_total", "exact.t"]
    assert sent < 3_500_000, (
        "of 5 MB in the topic, for 32 records of 2.5 KB in 16 places, which lie in batches of 41 KB"
    )
    reader.close()


def test_long_work_on_a_record_costs_no_partition(log: Log) -> None:
    """A member that does not poll for longer than its session keeps its place; its commit counts."""
    log.create([TopicSpec("long.t", 2)])
    fill(log, "long.t", 4)
    worker, other = log.consumer(["long.t"], "long.g", "worker"), log.consumer(["long.t"], "long.g", "other")
    deadline = time.monotonic() + HANG
    while len(worker.assignment()) != 1 or len(other.assignment()) != 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (held,) = worker.assignment()
    time.sleep(15)  # the session is 6 seconds
    assert worker.assignment() == {held}
    worker.commit({held: 1})
    assert log.committed("long.g", "long.t") == {held[1]: 1}
    worker.close()
    other.close()


def test_retention_that_has_overtaken_a_group_is_an_error_that_names_it(log: Log) -> None:
    log.create([TopicSpec("expired.t", 1)])
    fill(log, "expired.t", 20)
    consumer = log.consumer(["expired.t"], "expired.g", "a")

    def work() -> None:
        if consumer.poll(5, 1.0):
            consumer.commit({("expired.t", 0): 5})  # comes to nothing where the place was lost, on a slow machine

    until(lambda: log.committed("expired.g", "expired.t") == {0: 5}, doing=work)
    consumer.close()
    log.trim("expired.t", {0: 10})
    again = log.consumer(["expired.t"], "expired.g", "a")
    with pytest.raises(OffsetExpired, match=r"expired.t\[0\] offset 5"):
        while True:
            again.poll(5, 0.2)
    again.close()


def test_compressed_records_and_the_largest_come_back_as_they_were(kafka: KafkaServer) -> None:
    for compression in ("lz4", "zstd"):
        log = open_log(f"{kafka.url}?replication=1&compression={compression}")
        topic = f"packed.{compression}"
        log.create([TopicSpec(topic, 1)])
        values = [b"x" * 1000, bytes(16 << 20), b"end"]
        producer = log.producer()
        for value in values:
            producer.send(topic, b"k", value)
        positions = producer.flush()
        assert [r.value for r in log.reader(topic).get(positions)] == values
        producer.close()
        log.close()


def test_one_of_three_brokers_may_be_lost(tmp_path: Path) -> None:
    servers = cluster(tmp_path)
    log = open_log(servers[0].url)  # the one that is lost
    try:
        log.create([TopicSpec("three.t", 3)])
        only: Any = log.exclusive_producer("three.owner", "the learner")
        written = 0
        producer, consumer = log.producer(), log.consumer(["three.t"], "three.g", "a")
        got: list[bytes] = []
        for i in range(60):
            if i == 20:
                servers[0].kill()
            for partition in range(3):
                producer.send("three.t", b"k", f"{partition}/{i}".encode(), partition)
                written += 1
            while True:
                try:
                    assert len(producer.flush()) == 3
                    break
                except LogUnavailable:
                    time.sleep(0.5)
        deadline = time.monotonic() + HANG
        while len(set(got)) < written and time.monotonic() < deadline:
            got += [r.value for r in consumer.poll(64, 0.5)]
        assert len(set(got)) == written == 180
        only.send("three.t", b"k", b"of a learner", 0)
        deadline, done = time.monotonic() + HANG, list[Position]()
        while not done:  # its coordinator may be the broker that is lost
            with contextlib.suppress(LogUnavailable):
                done = only.flush()
            assert time.monotonic() < deadline, "the cluster is there, whatever became of the broker in the run file"
        for thing in (producer, consumer, only):
            thing.close()
    finally:
        log.close()
        for server in servers:
            server.kill()


def test_a_broker_that_is_lost_in_a_transaction_costs_no_record_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client would commit without a record that it has given up on."""
    from broker.kafka.faults import away

    monkeypatch.setattr("broker.kafka.producer.FLUSH_SECONDS", 2.0)
    with KafkaServer(tmp_path) as server:
        log = open_log(f"{server.url}?replication=1")
        log.create([TopicSpec("lost.t", 2)])
        only = log.exclusive_producer("lost.owner", "the learner")
        only.send("lost.t", b"k", b"before", 0)
        only.flush()

        def lost(*clients: Any) -> str:
            """The broker is there when the transaction is to begin, and killed then."""
            assert away(*clients) == ""
            server.kill()
            return ""

        with monkeypatch.context() as patched:
            patched.setattr("broker.kafka.producer.away", lost)
            for partition in range(2):
                only.send("lost.t", b"k", b"in it", partition)
            with pytest.raises(LogUnavailable):
                only.flush()
        server.start()
        monkeypatch.setattr("broker.kafka.producer.FLUSH_SECONDS", 20.0)
        deadline = time.monotonic() + HANG
        positions: list[Position] = []
        while not positions:
            with contextlib.suppress(LogUnavailable):
                positions = only.flush()
            assert time.monotonic() < deadline
        assert sorted(p.partition for p in positions) == [0, 1]
        reader, found = log.reader("lost.t"), list[bytes]()
        while records := reader.poll(16, 5.0):
            found += [r.value for r in records]
        assert sorted(found) == [b"before", b"in it", b"in it"]
        only.close()
        log.close()


def test_a_broker_that_is_lost_before_a_commit_holds_nobody_up_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KafkaServer(tmp_path) as server:
        log = open_log(f"{server.url}?replication=1")
        log.create([TopicSpec("lost.t", 1)])
        only: Any = log.exclusive_producer("lost.owner", "the learner")
        appended, killed = only._appended, threading.Event()

        def lost(client: Any) -> list[Position]:
            found = appended(client)
            server.kill()
            killed.set()
            return list(found)

        monkeypatch.setattr(only, "_appended", lost)
        monkeypatch.setattr("broker.kafka.producer.FLUSH_SECONDS", 5.0)
        only.send("lost.t", b"k", b"unsettled", 0)
        with ThreadPoolExecutor(1) as pool:
            flushed = pool.submit(only.flush)
            assert killed.wait(HANG)
            server.start()
            try:
                settled = flushed.result(60)
            except LogUnsettled as error:
                settled = []
                assert "start again" in str(error)
        with contextlib.suppress(LogError):
            only.close()
        monkeypatch.undo()
        again = log.exclusive_producer("lost.owner", "the next one")
        again.send("lost.t", b"k", b"of the next", 0)
        again.flush()
        reader, found = log.reader("lost.t"), list[bytes]()
        while records := reader.poll(16, 5.0):
            found += [r.value for r in records]
        assert found in ([b"unsettled", b"of the next"], *([] if settled else [[b"of the next"]]))
        again.close()
        log.close()


def test_a_name_that_another_has_taken_meanwhile_is_not_taken_back(log: Log) -> None:
    log.create([TopicSpec("taken.t", 1)])
    first: Any = log.exclusive_producer("taken.owner", "the first")
    first._release()  # as one that the broker has not heard of for the length of a session
    second: Any = log.exclusive_producer("taken.owner", "the second")
    first._restart()
    first.send("taken.t", b"k", b"late", 0)
    with pytest.raises(HeldByAnother, match="the second"):
        first.flush()
    second.send("taken.t", b"k", b"of the second", 0)
    assert len(second.flush()) == 1, "nobody has fenced it"
    second.close()


def numbers(kafka: KafkaServer) -> dict[tuple[str, str | None], float]:
    """What the broker counts, by name and topic."""
    with urllib.request.urlopen(f"http://{kafka.metrics}/metrics", timeout=HANG) as answer:
        return {
            (s.name, s.labels.get("topic")): s.value
            for family in text_string_to_metric_families(answer.read().decode())
            for s in family.samples
        }


def test_a_brokers_own_numbers_are_served_beside_ours(kafka: KafkaServer, log: Log) -> None:
    log.create([TopicSpec("numbers")])
    fill(log, "numbers", 7)
    samples = numbers(kafka)
    assert samples["kafka_topic_messagesin_total", "numbers"] == 7
    assert samples["kafka_log_logendoffset", "numbers"] == 7 and samples["kafka_log_size", "numbers"] > 0
