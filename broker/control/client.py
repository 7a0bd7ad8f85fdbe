"""A daemon's end of the control road: sends heartbeats, receives the state, and passes the learner's orders to a handler.

Reconnects by itself when the learner restarts at the same endpoint; for another one, call ``connect``.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import zmq

from broker.control.keys import Keys
from broker.control.wake import Wake
from broker.control.wire import Message, pack, unpack

log = logging.getLogger("control")
BEAT_SECONDS = 0.5
LAPSE_SECONDS = 2.0  # a gap this long between two rounds of the loop means that the process was stopped
WELCOME_SECONDS, SAY_SECONDS = 10.0, 60.0  # wait for a welcome before the first warning, and between warnings
TAKEN_SECONDS = (
    15.0  # a killed daemon's name is free again after its lease; a name that is not by then has a living owner
)


class ControlClient:
    """``status`` is called for each heartbeat; ``handler`` gets every message of the learner, on the client's thread. The state in a
    welcome has ``joined`` set: earlier messages then belong to an earlier membership, unless ``known`` is true.

    ``refused`` is the reason once the learner has refused this daemon for ``TAKEN_SECONDS``: another living one has its name.
    """

    def __init__(
        self, name: str, role: str, *, receiver: int = 0, keys: Keys | None = None,
        status: Callable[[], dict[str, Any]] = dict, handler: Callable[[Message], None] = lambda message: None,
    ) -> None:  # fmt: skip
        self._name, self._role, self._receiver, self._keys = name, role, receiver, keys
        self._status, self._handler = status, handler
        self._out: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._wanted = ""
        self._endpoint = ""
        self.joined = False
        self.heard = time.monotonic()
        """When the last message of the learner arrived (monotonic seconds)."""
        self.refused = ""
        self.malformed = 0
        self._instance = uuid.uuid4().hex
        self._taken_since = 0.0
        self._asked = 0.0  # start of the current wait for a welcome; moved on after each warning
        self._held: list[Message] | None = None  # orders received after a lapse, until the welcome validates them
        self._wake = Wake()
        self._stop = threading.Event()
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._dealer: zmq.Socket[bytes] | None = None
        self._sub: zmq.Socket[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def connect(self, endpoint: str) -> None:
        """Connect to the learner at ``endpoint``; no effect if that is the current one."""
        self._wanted = endpoint
        self._wake.set()

    def send(self, kind: str, **fields: Any) -> None:
        self._out.put(pack(kind, name=self._name, **fields))
        self._wake.set()

    def beat(self) -> None:
        """Send the status now instead of with the next heartbeat."""
        self.send("beat", status=self._status())

    def close(self) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join()
        self._wake.close()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        due, turned = 0.0, time.monotonic()
        self._poller.register(self._wake.fileno(), zmq.POLLIN)
        while not self._stop.is_set():
            self._wake.clear()
            lapsed, turned = time.monotonic() - turned > LAPSE_SECONDS, time.monotonic()
            if lapsed and self._dealer is not None and self.joined:
                self._held = []  # the process was stopped: the next orders may be for a membership that has ended
                self._say(self._join())
            if self._wanted != self._endpoint:
                self._call()
            if self._dealer is None:
                self._poller.poll()
                turned = time.monotonic()
                continue
            self._say_if_unanswered()
            if time.monotonic() >= due:
                due = time.monotonic() + BEAT_SECONDS
                self._say(pack("beat", name=self._name, status=self._status()))
            while not self._out.empty():
                self._say(self._out.get())
            self._poller.poll(int(1000 * max(0.0, due - time.monotonic())) + 1)
            self._listen()
        self._leave()

    def _call(self) -> None:
        """Connect to the wanted endpoint and ask to join."""
        for socket in (self._dealer, self._sub):
            self._drop(socket)
        self._endpoint, self.joined, self._sub = self._wanted, False, None
        self._asked, self._held = time.monotonic(), None
        self._dealer = self._socket(zmq.DEALER, self._endpoint)
        self._say(self._join())

    def _listen(self) -> None:
        """Handle all messages that have arrived."""
        while self._dealer is not None and self._dealer.poll(0):
            self._hear(self._read(self._dealer))
        while self._sub is not None and self._sub.poll(0):
            message = self._read(self._sub)
            if message["k"]:
                self._handler(message)

    def _hear(self, message: Message) -> None:
        kind = message["k"]
        if kind == "welcome":
            self._welcomed(message)
        elif kind == "rejoin":
            self._say(self._join())
        elif kind == "taken":
            self._taken(message)
        elif kind and self._held is not None:
            self._held.append(message)
        elif kind:
            self._handler(message)

    def _welcomed(self, message: Message) -> None:
        self._drop(self._sub)
        self._sub = self._socket(zmq.SUB, str(message.get("pub")))
        self._sub.subscribe(b"")
        self.joined, self._taken_since = True, 0.0
        known = message.get("known") is True
        held, self._held = self._held or [], None
        self._handler({"k": "state", "joined": True, "known": known, **message.get("state", {})})
        for order in held if known else []:
            self._handler(order)

    def _leave(self) -> None:
        if self._dealer is not None:
            self._say(pack("leave", name=self._name))
            self._dealer.close(200)
        if self._sub is not None:
            self._sub.close(0)

    def _say_if_unanswered(self) -> None:
        now = time.monotonic()
        if not self.joined and now - self._asked > WELCOME_SECONDS:
            self._asked = now + SAY_SECONDS - WELCOME_SECONDS
            log.warning(
                "the learner at %s does not answer: can this machine reach that address? [broker] control names the one under which the "
                "learner listens (tcp://HOST:PORT, beyond one machine with keys)", self._endpoint,
            )  # fmt: skip

    def _taken(self, message: Message) -> None:
        now = time.monotonic()
        self._taken_since = self._taken_since or now
        if now - self._taken_since > TAKEN_SECONDS and not self.refused:
            self.refused = (
                f"another {self._role} of this run lives under the name {self._name!r} ({message.get('by')}); "
                "give each its own --name"
            )
            log.error("%s", self.refused)

    def _read(self, socket: zmq.Socket[bytes]) -> Message:
        """The next message; one with an empty kind if it is malformed."""
        message = unpack(socket.recv())
        self.heard = time.monotonic()
        if message is None:
            self.malformed += 1
            return {"k": ""}
        return message

    def _join(self) -> bytes:
        return pack(
            "join", name=self._name, instance=self._instance, role=self._role, receiver=self._receiver, status=self._status()
        )  # fmt: skip

    def _say(self, data: bytes) -> None:
        assert self._dealer is not None
        with contextlib.suppress(zmq.Again):  # nobody listens: the next heartbeat repeats it
            self._dealer.send(data, zmq.NOBLOCK)

    def _drop(self, socket: zmq.Socket[bytes] | None) -> None:
        if socket is not None:
            self._poller.unregister(socket)
            socket.close(0)

    def _socket(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = 0
        if self._keys is not None:
            self._keys.call(socket)
        socket.connect(endpoint)
        self._poller.register(socket, zmq.POLLIN)
        return socket
