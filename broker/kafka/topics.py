"""Topics on a cluster: creates the missing ones, and rejects existing ones whose settings would lose data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.errors import AuthorizationError, TopicAlreadyExistsError

from broker.errors import LogError
from broker.kafka.faults import translated
from broker.kafka.settings import KafkaSettings
from broker.log import DEAD_BYTES, TopicSpec

log = logging.getLogger("log")
ROOM = 1 << 16  # overhead that a record batch adds to its records
FOR_EVER = -1


def create(admin: KafkaAdminClient, settings: KafkaSettings, specs: Iterable[TopicSpec]) -> None:
    """Create the missing topics and check the existing ones. Raises LogError or LogUnavailable."""
    wanted = {spec.name: spec for spec in specs}
    with translated("making topics"):
        existing = set(admin.list_topics())
        missing = {
            name: settings_of(spec, settings, copies(admin, settings))
            for name, spec in wanted.items()
            if name not in existing
        }
        if missing:
            _make(admin, missing)
    there = [name for name in wanted if name in existing]
    found = described(admin, there)
    for name in there:
        check(wanted[name], *found[name], settings)


def _make(admin: KafkaAdminClient, missing: Mapping[str, Any]) -> None:
    try:
        admin.create_topics(dict(missing), wait_for_metadata=True)
    except TopicAlreadyExistsError:  # another daemon is creating them right now
        admin.wait_for_topics(list(missing))
    except AuthorizationError:  # a daemon with minimal rights sees only its own topics
        log.info(
            "the credentials do not allow to see or make %s; the learner, or `headrace broker init`, makes topics",
            ", ".join(missing),
        )


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
    """The existing topics by name, each with its raw settings (empty without the right to read them)."""
    names = list(names)
    if not names:
        return {}
    with translated("describing topics"):
        partitions = {t["name"]: len(t["partitions"]) for t in admin.describe_topics(names)}
        raw = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, n) for n in names], config_filter="all")
    found = {}
    for name, entries in next(iter(raw.values())).items():
        values = {key: str(entry["value"]) for key, entry in entries.items()}
        if "retention.ms" not in values:  # no right to read the settings
            found[name] = TopicSpec(name, partitions[name]), dict[str, str]()
            continue
        age, size = int(values["retention.ms"]), int(values["retention.bytes"])
        spec = TopicSpec(
            name, partitions[name], "compact" in values["cleanup.policy"], _kept(age, 0.001), int(_kept(size, 1))
        )
        found[name] = spec, values
    return found


def _kept(value: int, least: float) -> float:
    """A retention setting as ``TopicSpec`` has it, where 0 means for ever; Kafka's 0 ("at once") becomes ``least``."""
    if value < 0:
        return 0.0
    return max(least, value / 1000 if least < 1 else value)


def check(wanted: TopicSpec, found: TopicSpec, raw: dict[str, str], settings: KafkaSettings) -> None:
    """Raises LogError if a topic's settings would lose or reject records. If ``raw`` is empty (no right to read it), checks only the partitions."""
    name = wanted.name
    if found.partitions != wanted.partitions:
        raise LogError(
            f"topic {name} has {found.partitions} partitions, not {wanted.partitions}: records of a key would move; set [broker] partitions = "
            f"{found.partitions}, or use another [run] name"
        )
    if not raw:
        log.info("the settings of topic %s are not checked: the credentials do not allow DESCRIBE_CONFIGS", name)
        return
    policies, should = set(filter(None, raw["cleanup.policy"].split(","))), "compact" if wanted.compacted else "delete"
    if policies - {should} or (wanted.compacted and not policies):
        raise LogError(
            f"topic {name} has cleanup.policy = {raw['cleanup.policy']}, so it is {'' if 'compact' in policies else 'not '}compacted"
            f"{' and removes records by age' if wanted.compacted and 'delete' in policies else ''}: set cleanup.policy={should}"
        )
    if not wanted.compacted:
        _check_retention(
            name, "retention.ms", int(raw["retention.ms"]), int(wanted.retention_seconds * 1000) or FOR_EVER
        )
        _check_retention(name, "retention.bytes", int(raw["retention.bytes"]), wanted.retention_bytes or FOR_EVER)
    if int(raw["max.message.bytes"]) < settings.max_record_bytes + DEAD_BYTES:
        raise LogError(
            f"topic {name} has max.message.bytes = {raw['max.message.bytes']}: set {settings.max_record_bytes + ROOM}"
        )


def _check_retention(name: str, kind: str, is_: int, should: int) -> None:
    """``FOR_EVER`` is the only value that removes nothing; 0 removes everything at once."""
    if is_ == FOR_EVER or (should != FOR_EVER and is_ >= should):
        return
    cure = f"set it to {FOR_EVER}, which is for ever" if should == FOR_EVER else f"raise it to at least {should}"
    raise LogError(f"topic {name} has {kind} = {is_}: records that are needed would be removed; {cure}")
