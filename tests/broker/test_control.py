"""The control road: who is alive, what malformed messages do, and a learner that comes back elsewhere."""

from __future__ import annotations

import itertools
import resource
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import zmq
from patience import HANG, until

from broker.control.client import ControlClient
from broker.control.keys import Keys
from broker.control.server import ControlServer
from broker.control.wire import Message
from broker.errors import ControlError
from broker.weights.client import WeightClient
from broker.weights.sink import Lane, Push
from monitoring.ports import free_ports


def test_members_come_tell_their_status_and_go() -> None:
    server = ControlServer(lease=2.0)
    heard: list[Message] = []
    client = ControlClient("actor-0", "actor", receiver=True, status=lambda: {"pid": 7}, handler=heard.append)
    client.connect(server.endpoint)
    until(lambda: server.receivers())
    assert server.members()[0].status == {"pid": 7}
    server.announce(version=3, path="/somewhere")
    until(lambda: any(m["k"] == "state" and m["version"] == 3 for m in heard))
    server.tell(server.members()[0], "lane", epoch=1)
    until(lambda: {"k": "lane", "epoch": 1} in heard)
    client.close()
    until(lambda: not server.members())
    server.close()


def test_who_is_evicted_comes_back_with_its_next_word() -> None:
    server = ControlServer()
    told = itertools.count()
    client = ControlClient("a", "actor", status=lambda: {"told": next(told)})
    client.connect(server.endpoint)
    until(lambda: [m for m in server.members() if m.status["told"] > 0])  # its first beat has come, the next is not due
    assert server.evict("a")
    assert not server.members()
    until(lambda: server.members())
    client.close()
    server.close()


def test_a_name_belongs_to_the_daemon_that_lives_under_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.control.client.TAKEN_SECONDS", 0.5)
    server = ControlServer(lease=2.0)
    first = ControlClient("a", "actor", status=lambda: {"pid": 1})
    first.connect(server.endpoint)
    until(lambda: server.members())
    second = ControlClient("a", "actor", status=lambda: {"pid": 2})
    second.connect(server.endpoint)
    until(lambda: second.refused)
    assert "'a'" in second.refused and "--name" in second.refused and not first.refused
    assert [m.status for m in server.members()] == [{"pid": 1}]
    second.close()
    first.close()
    until(lambda: not server.members())
    heir = ControlClient("a", "actor", status=lambda: {"pid": 3})
    heir.connect(server.endpoint)
    until(lambda: [m.status for m in server.members()] == [{"pid": 3}])
    heir.close()
    server.close()


@pytest.mark.long
def test_silence_ends_a_membership() -> None:
    server = ControlServer(lease=2.0)
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(server.endpoint)
    from broker.control.wire import pack

    socket.send(pack("join", name="mute", role="actor", receiver=True))
    until(lambda: server.members())
    until(lambda: not server.members())
    context.destroy(linger=0)
    server.close()


def test_malformed_messages_are_counted_and_disturb_nobody() -> None:
    server = ControlServer()
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(server.endpoint)
    for data in (b"", b"\xc1", b"\x90", b"\x81\xa1k\x01", b"\x81\xa1k\xa4join"):
        socket.send(data)
    until(lambda: server.malformed == 5)
    client = ControlClient("a", "actor")
    client.connect(server.endpoint)
    until(lambda: server.members())
    client.close()
    context.destroy(linger=0)
    server.close()


def test_a_client_follows_the_learner_to_another_endpoint() -> None:
    first = ControlServer()
    client = ControlClient("a", "actor")
    client.connect(first.endpoint)
    until(lambda: first.members())
    first.close()
    second = ControlServer()
    client.connect(second.endpoint)
    until(lambda: second.members())
    client.close()
    second.close()


def test_keys_let_in_only_those_who_have_them(tmp_path: Path) -> None:
    keys = Keys.make(tmp_path / "keys.json")
    assert Keys.read(tmp_path / "keys.json") == keys and (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
    server = ControlServer(keys=keys)
    stranger, friend = ControlClient("stranger", "actor"), ControlClient("friend", "actor", keys=keys)
    stranger.connect(server.endpoint)
    friend.connect(server.endpoint)
    until(lambda: server.members())
    time.sleep(0.5)
    assert [m.name for m in server.members()] == ["friend"]
    stranger.close()
    friend.close()
    server.close()
    with pytest.raises(ControlError, match="no control keys"):
        Keys.read(tmp_path / "none.json")


@pytest.mark.long
def test_a_learner_that_does_not_answer_is_named_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("broker.control.client.WELCOME_SECONDS", 0.2)
    (port,) = free_ports(1)
    client = ControlClient("a", "actor")
    with caplog.at_level("WARNING", "control"):
        client.connect(f"tcp://127.0.0.1:{port}")
        until(lambda: caplog.records)
    client.close()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and f"tcp://127.0.0.1:{port} does not answer" in said[0] and "[broker] control" in said[0]


class Slow:
    """An engine that is busy in the lane that it joins until it is let go."""

    ranks = 1
    ready = True

    def __init__(self) -> None:
        self.joined: list[int] = []
        self.go = threading.Event()

    def join(self, lane: Lane) -> None:
        self.joined.append(lane.epoch)
        self.go.wait(HANG)

    def receive(self, push: Push) -> str:
        return push.checksum

    def load(self, path: Path, version: int) -> None:
        """Nothing is published here."""

    def leave(self) -> None:
        """It holds no group."""

    def rest(self) -> None:
        """It is never asked to."""

    def wake(self, version: int, patience: float) -> None:
        """It never rests."""


@pytest.mark.long
def test_orders_to_a_membership_that_has_ended_are_void() -> None:
    """And no push is sent to a receiver before the order that it is busy with has ended."""
    server, sink = ControlServer(), Slow()
    client = WeightClient("a", sink)
    client.connect(server.endpoint)
    until(lambda: server.receivers())
    (member,) = server.receivers()
    for epoch in (1, 2):
        server.tell(member, "lane", **asdict(Lane(epoch, "g", "127.0.0.1", 1, 1, 2, "gloo", 1.0)))
    until(lambda: sink.joined == [1] and client._orders.qsize() == 1)
    assert server.lives(member)
    server.evict("a")
    assert not server.lives(member)
    until(lambda: server.members())
    until(lambda: not server.members()[0].receives)
    sink.go.set()
    until(lambda: server.receivers())
    server.tell(server.receivers()[0], "lane", **asdict(Lane(3, "g", "127.0.0.1", 1, 1, 2, "gloo", 1.0)))
    until(lambda: sink.joined[-1] == 3)
    assert sink.joined == [1, 3]
    client.close()
    server.close()


def test_a_learner_takes_as_many_members_as_the_hard_limit_of_open_files_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        server = ControlServer()
        server.close()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
