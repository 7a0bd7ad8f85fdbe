"""On devices that actors share with a learner: an engine is opened only while it is not the learner's shift."""

from __future__ import annotations

import os
import threading
import time
from contextlib import AbstractContextManager

from broker.control.client import ControlClient
from broker.control.keys import Keys
from broker.control.wire import Message
from broker.weights.client import ALONE_SECONDS
from monitoring.daemon import Stop

KNOWN_SECONDS = 2.0  # how long to wait for the learner's state before assuming that there is no learner
LOOK_SECONDS = 0.05


class ShiftGate:
    """A member of the control road beside those that the engine will have: a shift of the learner waits until it has left, because an
    engine that is being opened can neither rest nor be asked to."""

    def __init__(self, name: str, endpoint: str, keys: Keys | None = None) -> None:
        self._lock = threading.Lock()
        self._shift, self._rest, self._known, self._open, self._closed = 0, False, False, False, False
        self._client = ControlClient(
            f"{name}.opening", "actor", keys=keys, status=lambda: {"pid": os.getpid(), "turn": self._shift}, handler=self._hear
        )  # fmt: skip
        self._client.connect(endpoint)

    def _hear(self, message: Message) -> None:
        if message["k"] != "state":
            return
        with self._lock:
            self._known, self._rest = True, bool(message.get("rest", False))
            if not self._open:
                self._shift = int(message.get("turn", 0))
        self._client.beat()

    def wait(self, stop: Stop, idle: AbstractContextManager[None]) -> None:
        """Return once the engine may be opened: it is not the learner's shift, or nothing is heard of a learner."""
        begun = time.monotonic()
        with idle:
            while not stop:
                with self._lock:
                    silence = time.monotonic() - max(begun, self._client.heard)
                    self._open = not self._rest if self._known else silence > KNOWN_SECONDS
                    self._open = self._open or silence > ALONE_SECONDS
                    if self._open:
                        return
                stop.wait(LOOK_SECONDS)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._client.close()
