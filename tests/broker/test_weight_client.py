"""The receiver's end of the weight road: an engine that raises what it may not raise is answered for, and woken."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import HANG, until

from broker.control.server import ControlServer
from broker.errors import WeightPushError
from broker.weights.client import WeightClient
from broker.weights.sink import Lane, Push


class Engine:
    """Raises the errors that it is given under the name of a call, one each time, and notes its calls."""

    ranks = 1
    ready = True

    def __init__(self, **errors: list[Exception]) -> None:
        self._errors = errors
        self.calls: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self._errors.get(name):
            raise self._errors[name].pop(0)

    def join(self, lane: Lane) -> None:
        self._called("join")

    def receive(self, push: Push) -> str:
        self._called("receive")
        return push.checksum

    def load(self, path: Path, version: int) -> None:
        self._called("load")

    def leave(self) -> None:
        self._called("leave")

    def rest(self) -> None:
        self._called("rest")

    def wake(self, version: int, patience: float) -> None:
        self._called("wake")


@pytest.fixture
def server() -> Iterator[ControlServer]:
    server = ControlServer()
    yield server
    server.close()


@pytest.fixture
def joined(server: ControlServer) -> Iterator[Callable[..., WeightClient]]:
    """Brings an engine to the learner."""
    clients: list[WeightClient] = []

    def join(engine: Engine) -> WeightClient:
        clients.append(WeightClient("a", engine))
        clients[-1].connect(server.endpoint)
        until(server.receivers)
        return clients[-1]

    yield join
    for client in clients:
        client.close()


def push(server: ControlServer, version: int) -> None:
    server.tell(server.receivers()[0], "push", version=version, specs=[], bucket_bytes=1, checksum="c", epoch=1)


def test_a_push_that_fails_in_an_unforeseen_way_is_answered_and_so_is_the_next(
    server: ControlServer, joined: Callable[..., WeightClient]
) -> None:
    engine = Engine(receive=[RuntimeError("CUDA out of memory")])
    client = joined(engine)
    push(server, 1)
    failed = server.acks.get(timeout=HANG)
    assert failed["version"] == 1 and not failed["ok"] and failed["error"] == "RuntimeError: CUDA out of memory"
    push(server, 2)
    assert server.acks.get(timeout=HANG)["ok"] and not client.failure
    assert engine.calls == ["receive", "leave", "receive"]


class Raced(queue.Queue[Any]):
    """Another thread takes the last order between two calls."""

    lies = 0

    def empty(self) -> bool:
        self.lies += 1
        return super().empty() if self.lies > 1 else False


def test_a_new_membership_voids_orders_while_another_thread_takes_them(
    server: ControlServer, joined: Callable[..., WeightClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.weights.client.queue.Queue", Raced)
    joined(Engine())
    server.announce(turn=1, rest=False)
    until(lambda: server.members()[0].status["turn"] == 1)


def test_an_engine_that_could_not_rest_is_woken_with_the_others(
    server: ControlServer, joined: Callable[..., WeightClient]
) -> None:
    engine = Engine(rest=[WeightPushError("it was paused, and no more")] * 1000)
    joined(engine)
    server.announce(turn=1, rest=True)
    until(lambda: "rest" in engine.calls)
    server.announce(turn=2, rest=False)
    until(lambda: server.members()[0].status["turn"] == 2)
    assert engine.calls[-1] == "wake" and server.receivers()


def test_an_engine_that_could_not_rest_is_woken_when_the_learner_has_died() -> None:
    engine = Engine(rest=[WeightPushError("it was paused, and no more")] * 1000)
    server, client = ControlServer(), WeightClient("a", engine, alone=1.0)
    client.connect(server.endpoint)
    server.announce(turn=1, rest=True)
    until(lambda: "rest" in engine.calls)
    server.close()
    until(lambda: engine.calls[-1] == "wake")
    client.close()


def test_an_engine_that_could_not_wake_is_woken_again(
    server: ControlServer, joined: Callable[..., WeightClient]
) -> None:
    engine = Engine(wake=[WeightPushError("it does not answer")])
    joined(engine)
    server.announce(turn=1, rest=True)
    until(lambda: server.members()[0].status["turn"] == 1)
    assert not server.receivers()
    server.announce(turn=2, rest=False)
    until(lambda: server.members()[0].status["turn"] == 2)
    assert engine.calls == ["rest", "wake", "wake"] and server.receivers()


@pytest.mark.parametrize("call", ["rest", "load"])
def test_what_an_engine_may_not_raise_is_told_and_orders_go_on(
    server: ControlServer, joined: Callable[..., WeightClient], call: str
) -> None:
    client = joined(Engine(**{call: [RuntimeError("CUDA error")]}))
    server.announce(**{"rest": {"turn": 1, "rest": True}, "load": {"version": 3, "path": "/somewhere"}}[call])
    until(lambda: client.failure)
    assert client.failure == "state: RuntimeError: CUDA error"
    server.announce(turn=2, rest=False)
    until(lambda: server.members()[0].status["turn"] == 2)
    push(server, 4)
    assert server.acks.get(timeout=HANG)["ok"]
