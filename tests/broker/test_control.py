"""The control road: who is alive, what malformed messages do, and a learner that comes back elsewhere."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from broker.control.client import ControlClient
from broker.control.keys import Keys
from broker.control.server import ControlServer
from broker.control.wire import Message
from broker.errors import ControlError


def until(happened: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
