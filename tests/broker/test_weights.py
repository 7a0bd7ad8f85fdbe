"""The weight road with real processes: whatever happens to one receiver, the others get the newest version."""

from __future__ import annotations

import errno
import multiprocessing
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from forked import Forked
from patience import HANG, until
from safetensors.torch import load_file
from weights_publisher import LOADED, ForkedPublisher
from weights_receiver import main

from broker.control.server import ControlServer, Member
from broker.errors import ControlError, RunFault, WeightPushError
from broker.weights import layout
from broker.weights.client import WeightClient
from broker.weights.devices import gpu_of, refuse_shared
from broker.weights.group import serve_store
from broker.weights.process import Publisher
from broker.weights.publisher import WeightPublisher, saved_at
from broker.weights.receiver import DistributedReceiver
from broker.weights.road import Delivery, Direct, WeightRoad
from broker.weights.sink import Lane, Push
from broker.weights.worker import Started, of_its_own

pytestmark = pytest.mark.lane("weights")  # one process that has loaded torch
TIMEOUT = 4.0


class Remote:
    """A receiver process and what it says."""

    def __init__(self, name: str, endpoint: str, how: str) -> None:
        self.name = name
        self._road, theirs = multiprocessing.Pipe()
        self.process = Forked(main, (name, endpoint, how, theirs), LOADED)
        theirs.close()
        self.lines: queue.Queue[list[str]] = queue.Queue()
        self.said: list[list[str]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self.lines.put(self._road.recv_bytes().decode().split())

    def heard(self) -> list[list[str]]:
        """All lines so far that nobody has waited for."""
        while not self.lines.empty():
            self.said.append(self.lines.get())
        return self.said

    def wait(self, *words: str) -> list[str]:
        """Wait until it says a line that begins with ``words``."""
        deadline = time.monotonic() + HANG
        while True:
            for line in self.said:
                if line[: len(words)] == list(words):
                    self.said.remove(line)
                    return line
            left = deadline - time.monotonic()
            assert left > 0, f"{self.name} did not say {words}; it said {self.said}"
            try:
                self.said.append(self.lines.get(timeout=left))
            except queue.Empty:
                continue

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Learner:
    """Control, publisher and receivers of one test."""

    def __init__(
        self, directory: Path, lane: int = 8, road: WeightRoad | Literal["broadcast", "disk"] = "broadcast",
        timeout: float = TIMEOUT, lease: float = 10.0, begin: Callable[..., Started] = ForkedPublisher,
    ) -> None:  # fmt: skip
        template = directory / "template"
        template.mkdir(parents=True)
        (template / "config.json").write_text("{}")
        self.published: list[int] = []
        self.control = ControlServer(lease=lease)
        self.publisher = WeightPublisher(
            self.control, directory / "weights", template=template, lane=lane, timeout=timeout, bucket_bytes=4096, road=road,
            on_published=lambda version, path, checksum: self.published.append(version), begin=begin,
        )  # fmt: skip
        self.remotes: list[Remote] = []

    def receiver(self, name: str, how: str = "good") -> Remote:
        remote = Remote(name, self.control.endpoint, how)
        self.remotes.append(remote)
        return remote

    def push(self, version: int) -> None:
        """Publish weights whose mean is the version."""
        tensors = {
            "w": torch.full((60, 80), float(version)),
            **{f"w{i}": torch.full((60, 80), float(version)) for i in range(5)},
            "b": torch.full((7,), float(version), dtype=torch.bfloat16),
        }
        started = time.monotonic()
        self.publisher.publish(version, tensors)
        assert time.monotonic() - started < TIMEOUT / 2, "publishing waits for nobody"
        assert self.publisher.wait(HANG)
        assert self.published[-1] == version

    def close(self) -> None:
        for remote in self.remotes:
            remote.end()
        self.publisher.close()
        self.control.close()


@pytest.fixture
def learner(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Learner]:
    learner = Learner(tmp_path, getattr(request, "param", 8))
    yield learner
    learner.close()


def together(learner: Learner, *hows: str) -> list[Remote]:
    remotes = [learner.receiver(f"r{i}", how) for i, how in enumerate(hows)]
    until(lambda: len(learner.control.receivers()) == len(hows))
    return remotes


@pytest.mark.long
@pytest.mark.parametrize("learner", [2], indirect=True)
def test_every_receiver_of_every_lane_gets_every_version_whole(learner: Learner, tmp_path: Path) -> None:
    remotes = together(learner, "good", "good", "good")
    for version in (1, 2):
        learner.push(version)
        for remote in remotes:
            assert float(remote.wait("took", str(version))[2]) == version
    assert learner.publisher.stats.evictions == 0
    saved = load_file(tmp_path / "weights" / "v-00000002" / "model.safetensors")
    assert saved["w"].mean() == 2 and saved["b"].dtype == torch.bfloat16


@pytest.mark.long
def test_weights_may_go_over_a_shared_disk_with_the_same_words(tmp_path: Path) -> None:
    learner = Learner(tmp_path, road="disk")
    try:
        remotes = together(learner, "good", "good")
        for version in (1, 2):
            learner.push(version)
            for remote in remotes:
                remote.wait("loaded", str(version))
        os.kill(remotes[1].process.pid, signal.SIGSTOP)  # it says nothing
        learner.push(3)
        remotes[0].wait("loaded", "3")
        assert learner.publisher.stats.evictions == 1
        os.kill(remotes[1].process.pid, signal.SIGCONT)
        until(lambda: len(learner.control.receivers()) == 2)
        learner.push(4)
        remotes[1].wait("loaded", "4")
    finally:
        learner.close()


class Sharded:
    """An engine of two ranks, each of which takes part in the broadcast."""

    ranks = 2
    ready = True

    def __init__(self) -> None:
        self.took: list[tuple[int, float]] = []
        self._parts = [
            DistributedReceiver(lambda version, tensors: self.took.append((version, float(tensors["w"].mean()))))
            for _ in range(2)
        ]

    def join(self, lane: Lane) -> None:
        self._both(lambda i: self._parts[i].join(replace(lane, rank=lane.rank + i)))

    def receive(self, push: Push) -> str:
        return self._both(lambda i: self._parts[i].receive(push))[0]

    def load(self, path: Path, version: int) -> None:
        self._both(lambda i: self._parts[i].load(path, version))

    def leave(self) -> None:
        self._both(lambda i: self._parts[i].leave())

    def _both(self, action: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(action, range(2)))


@pytest.mark.long
def test_a_sharded_receiver_takes_its_ranks_of_the_lane(learner: Learner) -> None:
    (remote,) = together(learner, "good")
    sink = Sharded()
    client = WeightClient("a sharded one", sink)
    client.connect(learner.control.endpoint)
    until(lambda: len(learner.control.receivers()) == 2)
    try:
        for version in (1, 2):
            learner.push(version)
            remote.wait("took", str(version))
        until(lambda: len(sink.took) == 4)
        assert sorted(sink.took) == [(1, 1.0), (1, 1.0), (2, 2.0), (2, 2.0)]
        assert learner.publisher.stats.evictions == 0
    finally:
        client.close()


class Away:
    """An engine whose server is gone: it lives, and can take no part."""

    ranks = 1

    def __init__(self) -> None:
        self.ready = True
        self.asked = 0

    def join(self, lane: Lane) -> None:
        self.asked += 1
        self.ready = False
        time.sleep(1.0)  # the other one is in the lane by then
        raise WeightPushError("connection refused")

    def receive(self, push: Push) -> str:
        raise WeightPushError("no lane")

    def load(self, path: Path, version: int) -> None:
        """It is asked for nothing else."""

    def leave(self) -> None:
        """It is in no group."""


@pytest.mark.long
def test_a_receiver_that_is_away_keeps_nobody_waiting_and_comes_back(learner: Learner) -> None:
    (remote,) = together(learner, "good")
    sink = Away()
    client = WeightClient("one without a server", sink)
    client.connect(learner.control.endpoint)
    until(lambda: len(learner.control.receivers()) == 2)
    try:
        learner.push(1)
        remote.wait("took", "1")
        assert sink.asked == 1 and learner.publisher.stats.epochs == 2, "one attempt was enough to see it"
        assert len(learner.control.receivers()) == 1
        learner.push(2)
        remote.wait("took", "2")
        assert sink.asked == 1 and learner.publisher.stats.evictions == 0
        sink.ready = True
        until(lambda: len(learner.control.receivers()) == 2)
    finally:
        client.close()


@pytest.mark.long
def test_a_receiver_that_rests_takes_no_push_and_catches_up_when_it_is_woken(learner: Learner) -> None:
    (remote,) = together(learner, "good")
    learner.push(1)
    remote.wait("took", "1")
    learner.control.announce(turn=1, rest=True)
    until(lambda: [m.status["turn"] for m in learner.control.members()] == [1])
    learner.push(2)
    time.sleep(1.0)
    assert not [words for words in remote.heard() if words[:2] in (["took", "2"], ["loaded", "2"])]
    assert learner.publisher.stats.evictions == 0
    learner.control.announce(turn=2, rest=False)
    remote.wait("loaded", "2")
    learner.push(3)
    remote.wait("took", "3")


@pytest.mark.long
@pytest.mark.parametrize("how", ["die", "stop"])
def test_a_receiver_that_breaks_off_in_the_middle_is_evicted_and_the_others_go_on(learner: Learner, how: str) -> None:
    good, bad = together(learner, "good", how)
    learner.push(1)
    bad.wait("took", "1")
    learner.push(2)
    bad.wait("stopping")
    assert float(good.wait("took", "2")[2]) == 2
    assert learner.publisher.stats.evictions == 1, "only the one that broke off"
    learner.push(3)
    assert float(good.wait("took", "3")[2]) == 3
    if how == "stop":
        os.kill(bad.process.pid, signal.SIGCONT)
        until(lambda: len(learner.control.receivers()) == 2)
        bad.wait("took", "3")
        learner.push(4)
        assert float(bad.wait("took", "4")[2]) == 4 and float(good.wait("took", "4")[2]) == 4


@pytest.mark.long
def test_who_is_not_heard_of_any_more_ends_the_push_at_once(tmp_path: Path) -> None:
    """Stopped in the middle of a broadcast that may take a minute: its lease ends it, and the others have the version."""
    learner = Learner(tmp_path, timeout=60.0, lease=3.0)
    try:
        good, bad = together(learner, "good", "stop")
        learner.push(1)
        bad.wait("took", "1")
        started = time.monotonic()
        learner.push(2)
        good.wait("took", "2")
        assert time.monotonic() - started < 40, "without the lease it would be a minute and more"
        assert learner.publisher.stats.evictions == 1
        os.kill(bad.process.pid, signal.SIGCONT)
        until(lambda: len(learner.control.receivers()) == 2)
        learner.push(3)
        assert float(bad.wait("took", "3")[2]) == 3
    finally:
        learner.close()


@pytest.mark.parametrize("learner", [2], indirect=True)
def test_who_joins_re_forms_the_one_lane_that_it_enters(learner: Learner) -> None:
    remotes = together(learner, "good", "good", "good")
    learner.push(1)
    late = learner.receiver("r3")
    until(lambda: len(learner.control.receivers()) == 4)
    learner.push(2)
    for remote in [*remotes, late]:
        assert float(remote.wait("took", "2")[2]) == 2
    joins = [sum(words[0] == "joined" for words in remote.heard()) for remote in [*remotes, late]]
    assert joins == [1, 1, 2, 1] and learner.publisher.stats.epochs == 2


def test_in_one_process_the_weights_are_handed_over(tmp_path: Path) -> None:
    took: list[tuple[int, float]] = []
    learner = Learner(
        tmp_path, road=Direct([lambda version, tensors: took.append((version, float(tensors["w"].mean())))])
    )
    try:
        for version in (1, 2):
            learner.push(version)
        assert took == [(1, 1.0), (2, 2.0)]
        assert float(load_file(tmp_path / "weights" / "v-00000002" / "model.safetensors")["w"].mean()) == 2
    finally:
        learner.close()


@pytest.mark.long
def test_a_member_that_never_joins_a_lane_is_evicted(learner: Learner) -> None:
    good, _ = together(learner, "good", "deaf")
    learner.push(1)
    assert float(good.wait("took", "1")[2]) == 1
    assert learner.publisher.stats.evictions == 1


@pytest.mark.long
@pytest.mark.parametrize("learner", [1], indirect=True)
def test_who_is_in_another_lane_than_the_broken_one_stays_a_member(learner: Learner) -> None:
    other, _ = together(learner, "good", "deaf")
    learner.push(1)
    assert float(other.wait("took", "1")[2]) == 1
    assert learner.publisher.stats.evictions == 1


def test_the_rendezvous_listens_on_its_own_address_only() -> None:
    store = serve_store("127.0.0.1", 5.0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", store.port), timeout=HANG)
    socket.create_connection(("127.0.0.1", store.port), timeout=HANG).close()


def test_the_version_just_written_stays_after_a_rewind(learner: Learner, tmp_path: Path) -> None:
    for version in (7, 8, 3):
        learner.push(version)
    assert sorted(p.name for p in (tmp_path / "weights").glob("v-*")) == ["v-00000003", "v-00000008"]


def test_of_a_version_that_could_not_be_saved_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template, home = tmp_path / "template", tmp_path / "weights"
    template.mkdir()
    (template / "config.json").write_text("{}")

    def full(tensors: object, path: Path, **more: object) -> None:
        path.write_bytes(bytes(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    killed = home / ".v-00000001.77"
    killed.mkdir(parents=True)
    for pid in (78, 79):
        monkeypatch.setattr("broker.weights.process.os.getpid", lambda pid=pid: pid)
        publisher = Publisher([], 0, "cpu")
        publisher._flat = [torch.zeros(4, dtype=torch.uint8)]
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr("safetensors.torch.save_file", full)
            publisher.do_save(0, [["w", "float32", [1]]], str(template), str(home), pid, 2)
        assert not list(home.iterdir())
    publisher.do_save(0, [["w", "float32", [1]]], str(template), str(home), 3, 2)
    assert [path.name for path in home.iterdir()] == ["v-00000003"]


@pytest.mark.long
def test_a_publisher_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    learner = Learner(tmp_path, begin=of_its_own)
    (good,) = together(learner, "good")
    learner.push(1)
    good.wait("took", "1")
    os.kill(learner.publisher.pid, signal.SIGKILL)
    learner.push(2)
    assert float(good.wait("took", "2")[2]) == 2
    assert learner.publisher.restarts == 1
    learner.close()


def test_weights_of_another_shape_go_out_to_those_who_were_there(learner: Learner, tmp_path: Path) -> None:
    remotes = together(learner, "good", "good")
    learner.push(1)
    for remote in remotes:
        remote.wait("took", "1")
    learner.publisher.settle()
    other = {"w": torch.full((30, 40), 2.0), "b": torch.full((9,), 2.0)}
    learner.publisher.reshape(layout.specs_of(other))
    learner.publisher.publish(2, other)
    assert learner.publisher.wait(HANG) and learner.published[-1] == 2
    for remote in remotes:
        assert float(remote.wait("took", "2")[2]) == 2
    assert learner.publisher.stats.evictions == 0
    (file,) = saved_at(tmp_path / "weights", 2).glob("*.safetensors")
    assert {name: tuple(t.shape) for name, t in load_file(file).items()} == {"w": (30, 40), "b": (9,)}


def test_a_late_joiner_loads_from_disk_and_gets_the_next_version_by_broadcast(learner: Learner) -> None:
    learner.push(5)
    (late,) = together(learner, "good")
    late.wait("loaded", "5")
    learner.push(6)
    late.wait("joined")
    assert float(late.wait("took", "6")[2]) == 6


def test_the_newest_version_replaces_one_that_waits(learner: Learner) -> None:
    learner.push(1)
    for version in range(2, 30):
        learner.publisher.publish(
            version,
            {
                **{name: torch.full((60, 80), float(version)) for name in ("w", "w0", "w1", "w2", "w3", "w4")},
                "b": torch.zeros(7, dtype=torch.bfloat16),
            },
        )
    assert learner.publisher.wait(HANG)
    assert (
        learner.published[-1] == 29 and len(learner.published) < 29 and learner.published == sorted(learner.published)
    )


def test_beyond_the_loopback_keys_are_needed() -> None:
    with pytest.raises(ControlError, match="keys"):
        ControlServer("tcp://0.0.0.0:0")


def member(name: str, **status: object) -> Member:
    return Member(b"", name, "", "actor", 1, status, time.monotonic())


def test_nccl_is_refused_where_it_cannot_work_with_the_cure() -> None:
    refuse_shared("GPU-1", [member("a", gpu="GPU-2"), member("b", gpu="GPU-3"), member("a server elsewhere")])
    with pytest.raises(
        RunFault, match=r'a and the learner are on one GPU .*backend = "gloo".*road = "disk".*colocated'
    ):
        refuse_shared("GPU-1", [member("a", gpu="GPU-1")])
    with pytest.raises(RunFault, match="b and a are on one GPU"):
        refuse_shared("GPU-1", [member("a", gpu="GPU-2"), member("b", gpu="GPU-2")])
    with pytest.raises(RunFault, match="a, which is on a CPU"):
        refuse_shared("GPU-1", [member("a", gpu="")])
    assert gpu_of("cpu") == ""


class Breaks(Direct):
    """Breaks in its first delivery, once it is told to."""

    def __init__(self) -> None:
        super().__init__(())
        self.begun, self.go = threading.Event(), threading.Event()

    def deliver(self, delivery: Delivery, members: Sequence[Member]) -> None:
        self.begun.set()
        assert self.go.wait(HANG)
        raise RuntimeError("nothing goes along this road")


@pytest.mark.parametrize("waiting", [True, False])
def test_whoever_waits_for_a_publisher_that_has_failed_hears_of_it(tmp_path: Path, waiting: bool) -> None:
    road = Breaks()
    learner = Learner(tmp_path, road=road)
    try:
        learner.publisher.publish(1, {"w": torch.zeros(3)})
        assert road.begun.wait(HANG)
        if waiting:
            learner.publisher.publish(2, {"w": torch.zeros(3)})
        assert not learner.publisher.wait(0.0)
        learner.publisher.check()
        road.go.set()
        for heard in (lambda: learner.publisher.wait(HANG), learner.publisher.settle, learner.publisher.check):
            with pytest.raises(WeightPushError, match="the publisher has failed: nothing goes along this road"):
                heard()
        with pytest.raises(WeightPushError):
            learner.publisher.publish(3, {"w": torch.zeros(3)})
    finally:
        learner.close()


def test_a_fault_of_the_road_is_told_by_the_next_publication(tmp_path: Path) -> None:
    """NCCL to a receiver on a CPU: the run ends with the cure, it does not try for ever."""
    learner = Learner(tmp_path)
    learner.publisher._road.backend = "nccl"  # type: ignore[attr-defined]
    client = WeightClient("r0", DistributedReceiver(lambda version, tensors: None), lambda: {"gpu": ""})
    try:
        client.connect(learner.control.endpoint)
        until(lambda: learner.control.receivers())
        learner.publisher.publish(1, {"w": torch.zeros(3)})
        until(lambda: learner.publisher.failure is not None)
        with pytest.raises(WeightPushError, match=r"cannot bring weights to r0, which is on a CPU: .*gloo"):
            learner.publisher.publish(2, {"w": torch.zeros(3)})
    finally:
        client.close()
        learner.close()
