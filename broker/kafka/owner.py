"""Ownership through the broker: at most one live process holds a name, and others get an error that names the holder.

The holder is the only member of a consumer group; the broker notices its death within the session time-out. If a holder was cut off
and still tries to write, its successor's transactions fence it.
"""

from __future__ import annotations

import re
import threading
import time
from typing import Any

from kafka import KafkaConsumer, errors
from kafka.admin import KafkaAdminClient
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from broker.errors import HeldByAnother, LogUnavailable
from broker.kafka.consumer import SESSION_SECONDS
from broker.kafka.faults import patiently, translated
from broker.kafka.opening import closed_on_failure, opened
from broker.kafka.reader import consumer_settings
from broker.kafka.settings import KafkaSettings

MARGIN_SECONDS = 3.0
REBALANCE_SECONDS = 12.0  # how long the broker waits for a member that vanished while it joined
JOIN_SECONDS = 2 * REBALANCE_SECONDS


class Ownership:
    """Holds ``name`` until ``release`` or the end of this process. ``topic`` has one partition: the member that is assigned it owns the name.

    Raises HeldByAnother if another holder is alive, and LogUnavailable if the broker assigns the topic to nobody within ``JOIN_SECONDS``:
    the only member may have joined before it knew the topic, or the broker has lost it; opening it again joins anew.
    """

    def __init__(self, settings: KafkaSettings, admin: KafkaAdminClient, topic: str, name: str, owner: str) -> None:
        self._name, self._me, self._stop = name, printable(owner), threading.Event()
        self._wait_for_vacancy(admin)
        with translated(f"taking {name}"):
            self._consumer = opened(
                KafkaConsumer, **consumer_settings(settings), group_id=name, client_id=self._me,
                partition_assignment_strategy=[CooperativeStickyAssignor], session_timeout_ms=int(SESSION_SECONDS * 1000),
                heartbeat_interval_ms=1500, max_poll_interval_ms=int(REBALANCE_SECONDS * 1000),
            )  # fmt: skip
        with closed_on_failure(self._consumer), translated(f"taking {name}"):
            # a group leader that does not know the partition yet would assign none
            self._consumer.partitions_for_topic(topic)
            self._consumer.subscribe([topic])
            self._join(admin)
        self._thread = threading.Thread(target=self._run, name=f"owner of {name}", daemon=True)
        self._thread.start()

    def _join(self, admin: KafkaAdminClient) -> None:
        """Wait until this process holds the partition. Raises HeldByAnother, LogUnavailable."""
        deadline = time.monotonic() + JOIN_SECONDS
        while not self._turn():
            if time.monotonic() > deadline:
                if (holder := self._holder(admin)) is not None:
                    raise HeldByAnother(self._name, holder)
                raise LogUnavailable(
                    f"the broker has not given {self._name} to its only member within {JOIN_SECONDS:.0f} s"
                )

    def _wait_for_vacancy(self, admin: KafkaAdminClient) -> None:
        """Wait until no other member is listed: a killed holder stays listed until its session ends. Raises HeldByAnother."""
        deadline = time.monotonic() + SESSION_SECONDS + MARGIN_SECONDS
        while (holder := self._holder(admin)) is not None:
            if time.monotonic() > deadline:
                raise HeldByAnother(self._name, holder)
            time.sleep(0.25)

    def _holder(self, admin: KafkaAdminClient) -> str | None:
        """The client id of a listed member other than this process; None if there is none."""
        return self._other(self._listed(admin))

    def _listed(self, admin: KafkaAdminClient) -> list[str]:
        """The client ids of the name's members, as the broker lists them."""
        return [str(m["client_id"]) for m in members_of(admin, self._name)]

    def _other(self, clients: list[str]) -> str | None:
        return next((client for client in clients if client != self._me), None)

    def check(self, admin: KafkaAdminClient) -> None:
        """Raises HeldByAnother if another process holds the name by now, LogUnavailable while nobody does: a membership that was lost is
        taken up again by itself."""
        clients = self._listed(admin)
        if (holder := self._other(clients)) is not None:
            raise HeldByAnother(self._name, holder)
        if self._me not in clients:
            raise LogUnavailable(f"the broker does not list this process as the owner of {self._name} yet")

    def _turn(self) -> bool:
        """Poll once, which keeps the membership alive; returns whether this process holds the partition."""
        try:
            self._consumer.poll(200, 1)
        except errors.KafkaError:  # expected: no offset is ever committed here, as nothing is read
            time.sleep(0.2)
        held = self._consumer.assignment()
        self._consumer.pause(*held)
        return bool(held)

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            self._turn()
        self._consumer.close(autocommit=False, timeout_ms=2000)

    def release(self) -> None:
        self._stop.set()
        self._thread.join(5)


def members_of(admin: KafkaAdminClient, group: str) -> list[dict[str, Any]]:
    """The members of a consumer group as the broker lists them; empty if there is no such group."""
    with translated(f"asking who is in {group}"):
        try:
            return list(patiently(lambda: admin.describe_groups([group])[group]).get("members") or [])
        except errors.GroupIdNotFoundError:
            return []


def printable(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)[:200]
