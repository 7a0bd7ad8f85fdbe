"""The learner's end of the control road: a ROUTER socket for members and a PUB socket that repeats the state, on a thread."""

from __future__ import annotations

import queue
import resource
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import zmq

from broker.control.keys import Keys
from broker.control.wake import Wake
from broker.control.wire import Message, is_loopback, pack, unpack
from broker.errors import ControlError

LEASE_SECONDS = 5.0
STATE_SECONDS = 0.5


@dataclass(slots=True)
class Member:
    """A daemon that has joined. ``receiver`` is the number of broadcast ranks that take its weights (0: none), ``receives`` whether
    they can now. ``seen`` is the monotonic time of its last message.

    ``identity`` identifies its connection; ``instance`` identifies the process, and stays the same over reconnects.
    """

    identity: bytes
    name: str
    instance: str
    role: str
    receiver: int
    status: Mapping[str, Any]
    seen: float
    receives: bool = True


def allow_descriptors() -> None:
    """Raise this process's limit of open files to the hard limit: each member takes two, so the usual 1,024 allow only about 490 members."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class ControlServer:
    """Binds to ``endpoint``; port 0 takes a free one. ``lease`` is in seconds.

    Raises ControlError if it cannot bind, or if ``endpoint`` is beyond the loopback and there are no ``keys``.
    """

    def __init__(
        self, endpoint: str = "tcp://127.0.0.1:0", keys: Keys | None = None, lease: float = LEASE_SECONDS
    ) -> None:
        if keys is None and not is_loopback(endpoint):
            raise ControlError(
                f"[broker] control = {endpoint!r} can be reached from outside: give it keys ([broker] keys = FILE)"
            )
        allow_descriptors()
        self._lease = lease
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}
        self._state: dict[str, Any] = {"version": -1, "path": "", "epoch": 0, "turn": 0, "rest": False}
        self._out: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()
        self.acks: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.malformed = 0
        self._context = zmq.Context()
        self._router, self._pub = self._context.socket(zmq.ROUTER), self._context.socket(zmq.PUB)
        for socket in (self._router, self._pub):
            socket.linger = 0
            if keys is not None:
                keys.serve(socket)
        try:
            self._router.bind(endpoint)
            parts = urlsplit(endpoint)
            self._pub.bind(f"tcp://{parts.hostname}:0" if parts.scheme == "tcp" else f"{endpoint}.state")
        except zmq.ZMQError as error:
            self._context.destroy()
            raise ControlError(f"[broker] control = {endpoint!r} cannot be bound: {error}") from error
        self.endpoint: str = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._pub_endpoint: str = self._pub.getsockopt_string(zmq.LAST_ENDPOINT)
        self._wake = Wake()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    # -- for the learner -----------------------------------------------------------------------------------------------

    def members(self) -> list[Member]:
        """All members that have sent something within the lease."""
        with self._lock:
            return [m for m in self._members.values() if self._alive(m)]

    def _alive(self, member: Member) -> bool:
        return time.monotonic() - member.seen <= self._lease

    def lives(self, member: Member) -> bool:
        """Whether the process of ``member`` is alive: its lease has not run out, and no other process has taken its name."""
        with self._lock:
            now = self._members.get(member.name)
            return now is not None and now.instance == member.instance and self._alive(now)

    def receivers(self) -> list[Member]:
        return sorted((m for m in self.members() if m.receiver and m.receives), key=lambda m: m.name)

    def evict(self, name: str) -> bool:
        """Remove a member; returns False if there is none of that ``name``. If it is alive, its next message is answered with ``rejoin``."""
        with self._lock:
            return self._members.pop(name, None) is not None

    def tell(self, member: Member, kind: str, **fields: Any) -> None:
        self._out.put((member.identity, pack(kind, **fields)))
        self._wake.set()

    def announce(self, **state: Any) -> None:
        """Update fields of the state, and publish it."""
        with self._lock:
            self._state.update(state)
        self._wake.set()

    def close(self) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join()
        self._wake.close()
        self._context.destroy(linger=0)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        due, told = 0.0, ""
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake.fileno(), zmq.POLLIN)
        while not self._stop.is_set():
            self._wake.clear()
            while not self._out.empty():
                self._router.send_multipart(list(self._out.get()))
            with self._lock:
                state = dict(self._state)
            now = time.monotonic()
            if now >= due or str(state) != told:
                due, told = now + STATE_SECONDS, str(state)
                self._pub.send(pack("state", **state))
            poller.poll(int(1000 * max(0.0, due - time.monotonic())) + 1 if self._out.empty() else 0)
            while self._router.poll(0):
                identity, *frames = self._router.recv_multipart()
                message = unpack(frames[-1]) if frames else None
                if message is None or not self._handle(identity, message):
                    self.malformed += 1

    def _handle(self, identity: bytes, message: Message) -> bool:
        """Handle one message; False if it is malformed."""
        kind, name = message["k"], message.get("name")
        if not isinstance(name, str):
            return False
        with self._lock:
            member = self._members.get(name)
            if kind == "join":
                instance = str(message.get("instance", ""))
                if member is not None and member.instance != instance and self._alive(member):
                    self._out.put((identity, pack("taken", by=dict(member.status))))
                    return True
                known = member is not None and member.identity == identity and self._alive(member)
                self._members[name] = Member(
                    identity,
                    name,
                    instance,
                    str(message.get("role", "")),
                    _count(message.get("receiver")),
                    _map(message.get("status")),
                    time.monotonic(),
                )
                self._out.put((identity, pack("welcome", pub=self._pub_endpoint, known=known, state=dict(self._state))))
            elif member is None or member.identity != identity:
                if kind != "leave":
                    self._out.put((identity, pack("rejoin")))
            elif kind == "leave":
                del self._members[name]
            else:
                member.seen = time.monotonic()
                if kind == "beat":
                    member.status = _map(message.get("status"))
                    member.receives = member.status.get("receives") is not False
                elif kind == "ack":
                    member.receives = message.get("receives") is not False
                    self.acks.put(message)
                else:
                    return False
        return True


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value <= 4096 else 0


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
