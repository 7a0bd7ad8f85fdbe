"""Ownership through the broker: one live process holds a name, others are told by whom.

The holder is the one member of a consumer group; the broker notices its death within the session time-out. What a holder that
was cut off might still write is fenced by the transactions of its successor.
"""

from __future__ import annotations

import re
import threading
import time
from typing import Any

from kafka import KafkaConsumer, errors
from kafka.admin import KafkaAdminClient
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from broker.errors import HeldByAnother
from broker.kafka.consumer import SESSION_SECONDS
from broker.kafka.faults import patiently, translated
from broker.kafka.reader import consumer_settings
from broker.kafka.settings import KafkaSettings

MARGIN_SECONDS = 3.0
JOIN_SECONDS = 20.0


class Ownership:
    """Holds ``name`` until ``release`` or the end of this process. ``topic`` has one partition: who is given it, owns.

    Raises HeldByAnother once the present holder has shown that it lives.
    """

    def __init__(self, settings: KafkaSettings, admin: KafkaAdminClient, topic: str, name: str, owner: str) -> None:
        self._name, self._stop = name, threading.Event()
        self._wait_for_vacancy(admin, name)
        with translated(f"taking {name}"):
            self._consumer = KafkaConsumer(
                **consumer_settings(settings), group_id=name, client_id=printable(owner),
                partition_assignment_strategy=[CooperativeStickyAssignor], session_timeout_ms=int(SESSION_SECONDS * 1000),
                heartbeat_interval_ms=1500, max_poll_interval_ms=300_000,
            )  # fmt: skip
            self._consumer.subscribe([topic])
        deadline = time.monotonic() + JOIN_SECONDS
        while not self._turn():
            if time.monotonic() > deadline:
                holder = _holder(admin, name)
                self._consumer.close(autocommit=False, timeout_ms=1000)
                raise HeldByAnother(name, holder or "a process that came at the same time")
        self._thread = threading.Thread(target=self._run, name=f"owner of {name}", daemon=True)
        self._thread.start()

    def _wait_for_vacancy(self, admin: KafkaAdminClient, name: str) -> None:
        """A holder that was killed is still listed until its session ends."""
        deadline = time.monotonic() + SESSION_SECONDS + MARGIN_SECONDS
        while (holder := _holder(admin, name)) is not None:
            if time.monotonic() > deadline:
                raise HeldByAnother(name, holder)
            time.sleep(0.25)

    def _turn(self) -> bool:
        """Keep the membership alive; whether this process holds the partition."""
        try:
            self._consumer.poll(200, 1)
        except errors.KafkaError:  # no offset is ever committed here: reading is not what the membership is for
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


def _holder(admin: KafkaAdminClient, name: str) -> str | None:
    """The client id of the living member of group ``name``; None if there is none."""
    with translated(f"asking who holds {name}"):
        try:
            group: dict[str, Any] = patiently(lambda: admin.describe_groups([name])[name])
        except errors.GroupIdNotFoundError:
            return None
    members = group.get("members") or []
    return str(members[0]["client_id"]) if members else None


def printable(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)[:200]
