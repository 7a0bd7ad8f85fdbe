"""``kafka://``: the distributed log. Every daemon opens its own; Kafka clients must not be used across a fork."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kafka import KafkaConsumer, TopicPartition, errors
from kafka.admin import KafkaAdminClient, MemberToRemove

from broker.errors import LogError, LogUnavailable
from broker.kafka import topics as clustered
from broker.kafka.causes import brokers_of, listen
from broker.kafka.consumer import LogConsumer
from broker.kafka.faults import away, patiently, translated
from broker.kafka.opening import opened
from broker.kafka.owner import Ownership, members_of
from broker.kafka.probe import refusal
from broker.kafka.producer import ExclusiveProducer, LogProducer
from broker.kafka.reader import LogReader, consumer_settings
from broker.kafka.settings import KafkaSettings
from broker.log import First, TopicSpec

DELETE_SECONDS = 30.0  # how long a cluster may take to remove deleted topics
OWNERS = "headrace.owners"
"""A topic of one partition that nobody writes to: the group member that is assigned the partition owns the name."""


class KafkaLog:
    """Implements ``broker.log.Log`` on an Apache Kafka cluster (brokers 3.0 and newer)."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        listen()
        what = f"connecting to {', '.join(settings.servers)}"
        try:
            with translated(what, heard_before=0.0):
                self._admin = opened(KafkaAdminClient, **settings.common, request_timeout_ms=20_000)
                try:
                    self._asker = opened(KafkaConsumer, **consumer_settings(settings))
                except BaseException:
                    self._admin.close()
                    raise
        except LogUnavailable:
            for server in settings.servers:
                if (refused := refusal(server, settings.security)) is not None:
                    raise LogError(f"{what}: the broker was reached, but {refused.text}") from None
            raise
        if why := away(settings.servers, self._admin):
            self.close()
            raise LogUnavailable(why)
        # clients opened later (a member that joins again, say) must not depend on the brokers in the URL alone
        told = (server for server in brokers_of(self._admin) if server not in settings.servers)
        self._settings = replace(settings, servers=(*settings.servers, *told))

    @classmethod
    def from_url(cls, url: str) -> KafkaLog:
        """``kafka://HOST:PORT,HOST:PORT?option=value`` (see ``KafkaSettings``)."""
        return cls(KafkaSettings.parse(url))

    def create(self, specs: Iterable[TopicSpec]) -> None:
        with self._lock:
            clustered.create(self._admin, self._settings, [*specs, TopicSpec(OWNERS)])

    def topics(self) -> dict[str, TopicSpec]:
        with self._lock, translated("listing topics"):
            names = [n for n in self._admin.list_topics() if not n.startswith("__") and n != OWNERS]
            return {name: spec for name, (spec, _) in sorted(clustered.described(self._admin, names).items())}

    def _partitions(self, topic: str) -> int:
        if topic not in self._counts:
            with self._lock, translated(f"describing {topic}"):
                try:
                    (found,) = self._admin.describe_topics([topic])
                except errors.UnknownTopicOrPartitionError:
                    found = {"partitions": []}
            if not found["partitions"]:
                raise LogError(f"there is no topic {topic}")
            self._counts[topic] = len(found["partitions"])
        return self._counts[topic]

    def _parts(self, topic: str) -> list[TopicPartition]:
        return [TopicPartition(topic, p) for p in range(self._partitions(topic))]

    def producer(self) -> LogProducer:
        return LogProducer(self._settings, self._partitions)

    def exclusive_producer(self, name: str, owner: str) -> ExclusiveProducer:
        held = Ownership(self._settings, self._admin, OWNERS, name, owner)

        def check() -> None:
            with self._lock:
                held.check(self._admin)

        try:
            return ExclusiveProducer(self._settings, self._partitions, name, check, held.release)
        except LogError:
            held.release()
            raise

    def consumer(self, topics: Sequence[str], group: str, member: str, first: First | None = None) -> LogConsumer:
        return LogConsumer(self._settings, topics, group, member, self.begins, self, first)

    def members(self, group: str) -> frozenset[str]:
        """The names of the group's static members."""
        with self._lock:
            found = members_of(self._admin, group)
        return frozenset(str(m["group_instance_id"]) for m in found if m.get("group_instance_id"))

    def holder(self, group: str, instance: str) -> str:
        """The id of the member that has this static name now; empty if there is none."""
        with self._lock:
            found = members_of(self._admin, group)
        return next((str(m["member_id"]) for m in found if m.get("group_instance_id") == instance), "")

    def leave(self, group: str, instance: str) -> None:
        """Remove a static member from its group at once."""
        with self._lock:
            self._admin.remove_group_members(group, [MemberToRemove(group_instance_id=instance)])

    def reader(self, topic: str, offsets: Mapping[int, int] | None = None) -> LogReader:
        return LogReader(self._settings, topic, offsets or {}, lambda: self.begins(topic), lambda: self.ends(topic))

    def begins(self, topic: str) -> dict[int, int]:
        parts = self._parts(topic)
        with self._lock, translated(f"asking where {topic} begins"):
            return {p.partition: o for p, o in self._asker.beginning_offsets(parts).items()}

    def ends(self, topic: str) -> dict[int, int]:
        parts = self._parts(topic)
        with self._lock, translated(f"asking where {topic} ends"):
            return {p.partition: o for p, o in self._asker.end_offsets(parts).items()}

    def committed(self, group: str, topic: str) -> dict[int, int]:
        with self._lock, translated(f"asking for the offsets of {group}"):
            try:
                found = patiently(lambda: self._admin.list_group_offsets(group)[group])
            except errors.GroupIdNotFoundError:
                return {}
        return {p.partition: o.offset for p, o in found.items() if p.topic == topic and o.offset >= 0}

    def groups(self) -> dict[str, tuple[str, ...]]:
        with self._lock, translated("listing groups"):
            names = [g["group_id"] for g in self._admin.list_groups()]
            if not names:
                return {}
            offsets = patiently(lambda: self._admin.list_group_offsets(names))
        found = {name: tuple(sorted({p.topic for p in parts})) for name, parts in offsets.items()}
        return {name: topics for name, topics in sorted(found.items()) if topics}

    def lag(self, group: str, topic: str) -> int:
        begins, committed = self.begins(topic), self.committed(group, topic)
        return sum(end - max(committed.get(p, 0), begins[p]) for p, end in self.ends(topic).items())

    def delete(self, topics: Iterable[str], groups: Iterable[str]) -> None:
        with self._lock, translated("deleting topics and groups"):
            there = {g["group_id"] for g in self._admin.list_groups()}
            gone = [group for group in groups if group in there]
            for group in gone:
                if members := members_of(self._admin, group):
                    raise LogError(f"group {group} has a living member, {members[0]['client_id']}: stop the run first")
            if gone:
                patiently(lambda: self._admin.delete_groups(gone))
            names = set(topics) & set(self._admin.list_topics())
            if names:
                self._admin.delete_topics(sorted(names))
            deadline = time.monotonic() + DELETE_SECONDS
            while names & set(self._admin.list_topics()):
                if time.monotonic() > deadline:
                    raise LogUnavailable(f"the cluster has not removed all topics within {DELETE_SECONDS:.0f} s")
                time.sleep(0.1)
            self._counts.clear()

    def trim(self, topic: str, offsets: Mapping[int, int]) -> None:
        begins = self.begins(topic)
        wanted = {TopicPartition(topic, p): o for p, o in offsets.items() if o > begins.get(p, 0)}
        if wanted:
            with self._lock, translated(f"trimming {topic}"):
                self._admin.delete_records(wanted)

    def close(self) -> None:
        with self._lock, translated("closing the log"):
            self._asker.close(timeout_ms=500)
            self._admin.close()
