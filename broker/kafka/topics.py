"""Topics on a cluster: made as they should be, and refused where their settings would lose data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.errors import TopicAlreadyExistsError

from broker.errors import LogError
from broker.kafka.faults import translated
from broker.kafka.settings import KafkaSettings
from broker.log import TopicSpec

ROOM = 1 << 16  # what a record batch adds to its records
FOR_EVER = -1


def create(admin: KafkaAdminClient, settings: KafkaSettings, specs: Iterable[TopicSpec]) -> None:
    """Make the missing topics, check those that are there. Raises LogError, LogUnavailable."""
    wanted = {spec.name: spec for spec in specs}
    with translated("making topics"):
        existing = set(admin.list_topics())
        missing = {
            name: settings_of(spec, settings, copies(admin, settings))
            for name, spec in wanted.items()
            if name not in existing
        }
        if missing:
            try:
                admin.create_topics(missing, wait_for_metadata=True)
            except TopicAlreadyExistsError:  # another daemon makes them at this moment
                admin.wait_for_topics(list(missing))
    there = [name for name in wanted if name in existing]
    found = described(admin, there)
    for name in there:
        check(wanted[name], *found[name], settings)


def copies(admin: KafkaAdminClient, settings: KafkaSettings) -> int:
    """How many brokers keep each record."""
    return settings.replication or min(3, len(admin.describe_cluster()["brokers"]))


def settings_of(spec: TopicSpec, settings: KafkaSettings, replicas: int) -> dict[str, Any]:
    configs = {
        "cleanup.policy": "compact" if spec.compacted else "delete",
        "retention.ms": str(int(spec.retention_seconds * 1000) or FOR_EVER),
        "retention.bytes": str(spec.retention_bytes or FOR_EVER),
        "max.message.bytes": str(settings.max_record_bytes + ROOM),
        "min.insync.replicas": "2" if replicas >= 3 else "1",
    }
    return {"num_partitions": spec.partitions, "replication_factor": replicas, "configs": configs}


def described(admin: KafkaAdminClient, names: Iterable[str]) -> dict[str, tuple[TopicSpec, dict[str, str]]]:
    """The topics as they are, each with its raw settings."""
    names = list(names)
    if not names:
        return {}
    with translated("describing topics"):
        partitions = {t["name"]: len(t["partitions"]) for t in admin.describe_topics(names)}
        raw = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, n) for n in names], config_filter="all")
    found = {}
    for name, entries in next(iter(raw.values())).items():
        values = {key: str(entry["value"]) for key, entry in entries.items()}
        age, size = int(values["retention.ms"]), int(values["retention.bytes"])
        spec = TopicSpec(
            name, partitions[name], "compact" in values["cleanup.policy"], max(0, age) / 1000, max(0, size)
        )
        found[name] = spec, values
    return found


def check(wanted: TopicSpec, found: TopicSpec, raw: dict[str, str], settings: KafkaSettings) -> None:
    """Raises LogError where a topic has settings that would lose records or refuse them."""
    name = wanted.name
    if found.partitions != wanted.partitions:
        raise LogError(
            f"topic {name} has {found.partitions} partitions, not {wanted.partitions}: records of a key would move"
        )
    if found.compacted != wanted.compacted:
        raise LogError(
            f"topic {name} is {'' if found.compacted else 'not '}compacted, and must {'' if wanted.compacted else 'not '}be"
        )
    for kind, is_, should in (
        ("retention.ms", found.retention_seconds, wanted.retention_seconds),
        ("retention.bytes", found.retention_bytes, wanted.retention_bytes),
    ):
        if not wanted.compacted and is_ and (not should or is_ < should):
            raise LogError(f"topic {name} has {kind} = {raw[kind]}: records that are needed would be removed; raise it to at least "
                           f"{int(should * 1000) if kind.endswith('ms') else int(should) or FOR_EVER}")  # fmt: skip
    if int(raw["max.message.bytes"]) < settings.max_record_bytes:
        raise LogError(
            f"topic {name} has max.message.bytes = {raw['max.message.bytes']}: set {settings.max_record_bytes + ROOM}"
        )
