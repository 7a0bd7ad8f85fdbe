"""The SGLang engine on a real server on the CPU: the contract of engines, the weight road, and what a broken push leaves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from patience import HANG
from test_local_engine import PROMPTS, Policy, request

from actors.engine import Completion, Request
from actors.sglang.engine import SglangEngine
from actors.sglang.server import Server
from broker.control.server import ControlServer
from broker.errors import EngineError, WeightPushError
from broker.messages import Sampling
from broker.weights.client import WeightClient
from broker.weights.layout import specs_of
from broker.weights.publisher import WeightPublisher
from broker.weights.receiver import DistributedReceiver
from broker.weights.sink import Lane, Push

pytestmark = pytest.mark.sglang
CONTEXT = 64
TIMEOUT = 4.0  # seconds that a push may take


Opener = Callable[..., SglangEngine]


@pytest.fixture
def opened(server: Server, policy: Policy) -> Iterator[Opener]:
    engines: list[SglangEngine] = []

    def open_engine(mode: str = "retract", **options: Any) -> SglangEngine:
        engine = SglangEngine(str(policy.path), [server.url], slots=8, context=CONTEXT, mode=mode, **options)  # type: ignore[arg-type]
        engines.append(engine)
        engine.sinks[""].load(policy.path, 0)
        return engine

    yield open_engine
    for engine in engines:
        engine.close()


def drain(engine: SglangEngine, count: int) -> list[Completion]:
    out: list[Completion] = []
    deadline = time.monotonic() + HANG
    while len(out) < count:
        out += engine.poll(0.05)
        assert time.monotonic() < deadline, f"{len(out)} of {count} samples"
    return out


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_log_probabilities_are_those_of_transformers(opened: Opener, policy: Policy, temperature: float) -> None:
    engine = opened()
    for name, prompt in PROMPTS.items():
        engine.submit(request(name, prompt, 3, temperature=temperature))
    done = drain(engine, 12)
    assert {(c.group_id, c.index) for c in done} == {(g, i) for g in PROMPTS for i in range(3)}
    assert any(c.cached > 0 for c in done), "the samples of a group share their prompt"
    for c in done:
        assert c.finish_reason in ("stop", "length") and [(v.version, v.start) for v in c.versions] == [(0, 0)]
        expected = policy.logprobs(np.array(PROMPTS[c.group_id], np.int32), c.tokens, temperature or 1.0)
        assert c.logprobs == pytest.approx(expected, abs=1e-4)


def test_a_nucleus_is_sampled_from_as_the_local_engine_does(opened: Opener, policy: Policy) -> None:
    """As the paper's evaluations ask for it: no token comes from beyond the nucleus at that temperature, and more than one does from within."""
    engine = opened()
    for name, prompt in PROMPTS.items():
        engine.submit(request(name, prompt, 4, temperature=0.6, top_p=0.95))
    done = drain(engine, 16)
    for c in done:
        inside = policy.logprobs(np.array(PROMPTS[c.group_id], np.int32), c.tokens, 0.6, 0.951)  # a rounding wider
        assert np.isfinite(inside).all(), f"{c.group_id}: a token from beyond the nucleus"
    assert len({tuple(c.tokens) for c in done if c.group_id == "a"}) > 1


def test_stop_strings_and_the_context_end_a_sample(opened: Opener) -> None:
    engine = opened()
    engine.submit(request("full", PROMPTS["c"], 1, max_new_tokens=1000))
    (full,) = drain(engine, 1)
    assert len(full.tokens) <= CONTEXT - len(PROMPTS["c"])
    engine.submit(request("free", PROMPTS["a"], 1, temperature=0.0, max_new_tokens=20))
    (free,) = drain(engine, 1)
    stop = free.text[4:6]
    engine.check(Sampling(temperature=0.0, stop=(stop,)))
    engine.submit(request("stop", PROMPTS["a"], 1, temperature=0.0, max_new_tokens=20, stop=(stop,)))
    (stopped,) = drain(engine, 1)
    assert stopped.finish_reason == "stop" and stopped.text == free.text[: free.text.index(stop)]
    assert len(stopped.tokens) < len(free.tokens)


def test_what_can_never_be_served_is_refused_and_the_server_lives(opened: Opener) -> None:
    engine = opened()
    with pytest.raises(EngineError, match="context of 64"):
        engine.submit(request("long", list(range(64))))
    with pytest.raises(EngineError, match="vocabulary of 320"):
        engine.submit(request("odd", [320]))
    beyond = Sampling()
    object.__setattr__(beyond, "top_p", 2.0)  # the project's own message does not let it through
    with pytest.raises(EngineError, match="top_p must be in"):
        engine.check(beyond)
    engine.submit(request("b", PROMPTS["b"]))
    assert drain(engine, 1)[0].group_id == "b"


def test_a_request_waits_for_its_version_and_a_cancelled_group_is_forgotten(opened: Opener, newer: Policy) -> None:
    engine = opened()
    engine.submit(Request("late", (0,), np.array([5], np.int32), Sampling(max_new_tokens=2), min_version=3))
    engine.submit(request("gone", PROMPTS["a"], 2, max_new_tokens=40))
    engine.cancel("gone")
    time.sleep(0.3)
    assert engine.poll(0.0) == []
    engine.sinks[""].load(newer.path, 3)
    (done,) = drain(engine, 1)
    assert done.group_id == "late" and done.versions[0].version == 3


def test_a_server_that_does_not_answer_is_named(policy: Policy) -> None:
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9 does not answer"):
        SglangEngine(str(policy.path), ["http://127.0.0.1:9"], slots=8, context=CONTEXT, timeout=1.0)


# -- the weight road ---------------------------------------------------------------------------------------------------


class Road:
    """A publisher, the server as one receiver, and local receivers beside it in the same lane."""

    def __init__(self, directory: Path, template: Path, sink: Any) -> None:
        self.control = ControlServer()
        self.published: list[int] = []
        self.publisher = WeightPublisher(
            self.control, directory / "weights", template=template, timeout=TIMEOUT, bucket_bytes=40_000,
            on_published=lambda version, path, checksum: self.published.append(version),
        )  # fmt: skip
        self.clients = [WeightClient("server", sink)]
        self.clients[0].connect(self.control.endpoint)
        self.taken: dict[int, Mapping[str, torch.Tensor]] = {}
        self.wait_for(1)

    def beside(self, sink: Any = None) -> WeightClient:
        """Another receiver; without a sink one that keeps what it takes."""
        client = WeightClient(f"beside-{len(self.clients)}", sink or DistributedReceiver(self._take))
        client.connect(self.control.endpoint)
        self.clients.append(client)
        self.wait_for(len(self.clients))
        return client

    def _take(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        self.taken[version] = {name: tensor.clone() for name, tensor in tensors.items()}

    def wait_for(self, receivers: int) -> None:
        deadline = time.monotonic() + HANG
        while len(self.control.receivers()) < receivers:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def push(self, version: int, weights: Mapping[str, torch.Tensor]) -> float:
        """Publish and wait; returns how long the caller was blocked."""
        started = time.monotonic()
        self.publisher.publish(version, weights)
        blocked = time.monotonic() - started
        assert self.publisher.wait(HANG)
        return blocked

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.publisher.close()
        self.control.close()


@pytest.fixture
def road(tmp_path: Path, policy: Policy) -> Iterator[Callable[[SglangEngine], Road]]:
    roads: list[Road] = []

    def build(engine: SglangEngine) -> Road:
        roads.append(Road(tmp_path, policy.path, engine.sinks[""]))
        return roads[-1]

    yield build
    for it in roads:
        it.close()


@pytest.mark.parametrize("mode", ["retract", "in_place", "abort"])
def test_weights_change_between_two_tokens(
    opened: Opener, server: Server, road: Callable[[SglangEngine], Road], policy: Policy, newer: Policy, mode: str
) -> None:
    """The server shares a lane with a local receiver; tokens before and after the change are those of old and new weights."""
    engine = opened(mode)
    way = road(engine)
    way.beside()
    way.push(1, policy.weights())
    assert engine.version == 1
    httpx.post(f"{server.url}/flush_cache").raise_for_status()  # what other weights have left there: in_place keeps it
    crossed, version, held, under_way = 0, 1, [policy, newer], 0
    while crossed <= 2 or under_way:
        while crossed <= 2 and under_way < 8:
            name = "ac"[under_way % 2]
            engine.submit(request(name, PROMPTS[name], 1, max_new_tokens=50))
            under_way += 1
        for c in engine.poll(0.02):
            under_way -= 1
            crossed += check_versions(c, mode, held)
            if way.publisher.wait(0.0):  # one has ended, and the others are somewhere in their answers
                version += 1
                way.publisher.publish(version, held[(version - 1) % 2].weights())
    assert way.publisher.wait(HANG)
    assert way.published == list(range(1, version + 1)) and sorted(way.taken) == way.published
    assert way.publisher.stats.evictions == 0


def check_versions(c: Completion, mode: str, held: Sequence[Policy]) -> bool:
    """Compare a sample with the policies of its versions; whether it crossed a change."""
    if not len(c.tokens):
        assert mode == "abort" and c.finish_reason == "abort" and not c.versions, "it had not begun"
        return False
    prompt = np.array(PROMPTS[c.group_id], np.int32)
    ends = [span.start for span in c.versions[1:]] + [len(c.tokens)]
    far = False
    for span, end in zip(c.versions, ends, strict=True):
        part = slice(span.start, end)
        gap = np.abs(c.logprobs[part] - held[(span.version - 1) % 2].logprobs(prompt, c.tokens)[part]).max()
        if mode != "in_place" or span.version == 1:  # later prompts may come from a cache of older weights
            assert gap < 1e-4
        far = far or gap > 1e-3
    if mode == "abort":
        assert len(c.versions) <= 1
        return c.finish_reason == "abort"
    if len(c.versions) > 1 and mode == "in_place":
        assert far, "its cache is of the old weights"
    return len(c.versions) > 1


class Broken:
    """A receiver that enters the lane and leaves the others waiting there."""

    ranks = 1
    ready = True

    def __init__(self, how: str) -> None:
        self.how = how

    def join(self, lane: Lane) -> None:
        if self.how == "never joins":
            time.sleep(3 * TIMEOUT)
            raise WeightPushError("too late")
        self._inner = DistributedReceiver(lambda version, tensors: None)
        self._inner.join(lane)

    def receive(self, push: Any) -> str:
        if self.how == "breaks off":
            self.how = "good"
            time.sleep(3 * TIMEOUT)
            raise WeightPushError("too late")
        return self._inner.receive(push)

    def load(self, path: Path, version: int) -> None:
        pass

    def leave(self) -> None:
        pass


@pytest.mark.parametrize("how", ["never joins", "breaks off"])
def test_a_receiver_that_fails_in_its_lane_does_not_keep_the_server(
    opened: Opener, road: Callable[[SglangEngine], Road], policy: Policy, newer: Policy, how: str
) -> None:
    engine = opened()
    way = road(engine)
    way.push(1, policy.weights())
    way.beside(Broken(how))
    assert way.push(2, newer.weights()) < TIMEOUT / 2, "publishing waits for nobody"
    engine.submit(request("c", PROMPTS["c"], 2))
    for c in drain(engine, 2):
        assert c.versions[-1].version == 2
        assert c.logprobs == pytest.approx(newer.logprobs(np.array(PROMPTS["c"], np.int32), c.tokens), abs=1e-4)
    assert way.publisher.restarts >= 1, "the end that kept the others waiting was closed"


def test_a_server_that_stops_in_the_middle_is_evicted_and_comes_back(
    opened: Opener, road: Callable[[SglangEngine], Road], server: Server, policy: Policy, newer: Policy
) -> None:
    engine = opened()
    way = road(engine)
    way.beside()
    way.push(1, policy.weights())
    inside = psutil.Process(server.pid).children(recursive=True)
    try:
        for process in inside:
            os.kill(process.pid, signal.SIGSTOP)
        way.push(2, newer.weights())
        assert way.publisher.stats.evictions >= 1 and 2 in way.taken, "the other has it"
    finally:
        for process in inside:
            os.kill(process.pid, signal.SIGCONT)
    deadline = time.monotonic() + HANG
    version = 2
    while engine.version != version:
        assert time.monotonic() < deadline
        version += 1
        way.push(version, newer.weights())
        time.sleep(0.5)
    engine.submit(request("c", PROMPTS["c"], 2))
    for c in drain(engine, 2):
        assert c.logprobs == pytest.approx(newer.logprobs(np.array(PROMPTS["c"], np.int32), c.tokens), abs=1e-4)


def test_after_a_push_that_never_comes_again_older_weights_serve(opened: Opener, policy: Policy) -> None:
    """As when the learner is killed in the middle of one: nothing is sampled from a mixture, and the actor does not wait for it."""
    engine = opened(newest=lambda: (policy.path, 4))
    sink: Any = engine.sinks[""]
    sink._lane = Lane(9, "nobody", "127.0.0.1", 9, 1, 2, "gloo", TIMEOUT)
    engine.submit(request("c", PROMPTS["c"], 2, max_new_tokens=40))
    with pytest.raises(WeightPushError, match="update_weights_from_distributed"):
        sink.receive(Push(5, specs_of(policy.weights()), 1 << 20, "0"))
    assert engine.version == -1
    engine.submit(request("b", PROMPTS["b"], 2))
    for c in drain(engine, 4):
        assert c.versions[-1].version in (0, 4) and (c.group_id == "c" or c.versions[0].version == 4)
        assert c.logprobs == pytest.approx(policy.logprobs(np.array(PROMPTS[c.group_id], np.int32), c.tokens), abs=1e-4)


def test_a_killed_server_is_started_again_with_the_newest_weights_and_no_sample_is_lost(
    opened: Opener, server: Server, newer: Policy
) -> None:
    engine = opened(newest=lambda: (newer.path, 7))
    for name, prompt in PROMPTS.items():
        engine.submit(request(name, prompt, 4, max_new_tokens=50))
    time.sleep(0.1)
    os.kill(psutil.Process(server.pid).children(recursive=True)[-1].pid, signal.SIGKILL)
    os.killpg(server.pid, signal.SIGKILL)
    done = drain(engine, 16)
    assert sorted((c.group_id, c.index) for c in done) == sorted((g, i) for g in PROMPTS for i in range(4))
    again = [c for c in done if c.versions[0].version == 7]
    assert again and engine.version == 7
    for c in again:
        expected = newer.logprobs(np.array(PROMPTS[c.group_id], np.int32), c.tokens)
        assert c.logprobs == pytest.approx(expected, abs=1e-4)


# -- turns on the device -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["retract", "in_place", "abort"])
def test_nothing_is_sampled_at_rest_and_what_was_under_way_goes_on(opened: Opener, policy: Policy, mode: str) -> None:
    """A server on a CPU cannot give memory back: it is paused, and lives on."""
    engine = opened(mode)
    crossed = 0
    for attempt in count():
        for name in ("a", "c"):
            engine.submit(request(name, PROMPTS[name], 4, max_new_tokens=50))
        time.sleep(0.02 * (attempt % 6))
        engine.rest()
        engine.rest()
        assert engine.resting and engine.version == 0
        early = engine.poll(0.1)
        early += engine.poll(0.1)  # those that had ended, and with abort those that end now
        engine.submit(request("b", PROMPTS["b"], 2))
        assert engine.poll(1.0) == [], "nothing ends at rest"
        engine.wake()
        assert not engine.resting
        done = early + drain(engine, 10 - len(early))
        assert {c.group_id for c in done} == {"a", "b", "c"}
        for c in done:
            expected = policy.logprobs(np.array(PROMPTS[c.group_id], np.int32), c.tokens)
            assert c.logprobs == pytest.approx(expected, abs=1e-4)
        cut = sum(c.finish_reason == "abort" and len(c.tokens) > 0 for c in done)
        assert not cut or mode == "abort"
        crossed += cut if mode == "abort" else len(early) < 8
        if crossed:  # a sample was under way
            break


def test_a_server_that_is_woken_waits_for_the_weights_of_the_turn_but_not_for_ever(
    opened: Opener, road: Callable[[SglangEngine], Road], policy: Policy, newer: Policy
) -> None:
    engine = opened("retract", newest=lambda: (newer.path, 2))
    way = road(engine)
    way.push(1, policy.weights())
    engine.submit(request("c", PROMPTS["c"], 8, max_new_tokens=50))
    time.sleep(0.03)
    way.control.announce(turn=1, rest=True)
    deadline = time.monotonic() + HANG
    while not engine.resting:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    early = engine.poll(0.2)
    way.control.announce(turn=2, rest=False, coming=2, patience=60.0)
    while engine.resting or not way.control.receivers():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert engine.poll(1.0) == [], "the weights of the turn are still to come"
    way.push(2, newer.weights())
    assert engine.version == 2
    for c in drain(engine, 8 - len(early)):
        assert [span.version for span in c.versions] in ([1, 2], [2])
        change = c.versions[-1].start
        prompt = np.array(PROMPTS["c"], np.int32)
        assert c.logprobs[:change] == pytest.approx(policy.logprobs(prompt, c.tokens)[:change], abs=1e-4)
        assert c.logprobs[change:] == pytest.approx(newer.logprobs(prompt, c.tokens)[change:], abs=1e-4)
    engine.rest()
    engine.wake(version=3, patience=0.5)
    assert engine.version == -1
    engine.submit(request("b", PROMPTS["b"], 2))
    assert [c.versions[-1].version for c in drain(engine, 2)] == [2, 2], "version 3 never came"


def test_a_server_that_dies_at_rest_is_asked_for_nothing_before_it_is_woken(
    opened: Opener, server: Server, newer: Policy
) -> None:
    engine = opened(newest=lambda: (newer.path, 7))
    engine.submit(request("c", PROMPTS["c"], 4, max_new_tokens=50))
    time.sleep(0.03)
    engine.rest()
    early = engine.poll(0.2)
    os.kill(psutil.Process(server.pid).children(recursive=True)[-1].pid, signal.SIGKILL)
    os.killpg(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + HANG
    while not server.alive() or not server._answers():
        assert time.monotonic() < deadline and engine.resting
        time.sleep(0.5)
    engine.rest()  # as the control road says it again
    assert engine.poll(2.0) == [] and engine.version == -1
    engine.wake(7, 0.0)
    for c in drain(engine, 4 - len(early)):
        assert [span.version for span in c.versions] == [7]
        assert c.logprobs == pytest.approx(newer.logprobs(np.array(PROMPTS["c"], np.int32), c.tokens), abs=1e-4)
