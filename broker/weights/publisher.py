"""The learner's side of the weight road: snapshots, membership epochs, pushes, evictions. Training never waits for it.

A thread drives the publisher process and kills it when a push does not finish in time: nothing else frees the receivers that
are still in the collective. Who did not answer is evicted and may join again; the others get the version in a new epoch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from broker.control.server import ControlServer, Member
from broker.errors import WeightPushError
from broker.weights import layout
from broker.weights.devices import check_members
from broker.weights.replies import Words
from broker.weights.sink import Lane, Push, TensorSpec
from broker.weights.snapshot import Snapshots
from broker.weights.worker import PublisherProcess

log = logging.getLogger("weights")
# The process's start and the receivers' identities, of which an epoch is made; where there is none.
NO_EPOCH: tuple[int, tuple[bytes, ...]] = 0, ()
ATTEMPTS = 5  # epochs that one version is tried in before it is left to the next


@dataclass(slots=True)
class PushStats:
    """Counts since the start; ``blocked_seconds`` is what ``publish`` cost its caller."""

    pushes: int = 0
    evicted: Counter[str] = field(default_factory=Counter)
    """Evictions by the member's name."""
    epochs: int = 0
    bytes: int = 0
    push_seconds: float = 0.0
    blocked_seconds: float = 0.0

    @property
    def evictions(self) -> int:
        return self.evicted.total()


class WeightPublisher:
    """``template`` is a directory with the model's config and tokenizer; ``on_published(version, path, checksum)``. ``device`` is the
    one that the weights are on, and from which they are broadcast with the backend ``nccl``."""

    def __init__(
        self, control: ControlServer, directory: Path, *, template: Path, lane: int = 8, timeout: float = 60.0,
        bucket_bytes: int = 64 << 20, backend: str = "gloo", host: str = "127.0.0.1", keep: int = 2, device: str = "cpu",
        road: Literal["broadcast", "disk"] = "broadcast",
        on_published: Callable[[int, Path, str], None] = lambda version, path, checksum: None,
    ) -> None:  # fmt: skip
        self._control, self._directory, self._template = control, directory, template
        self._lane_size, self._timeout, self._bucket_bytes, self._keep = lane, timeout, bucket_bytes, keep
        self._backend, self._host, self._on_published, self._road = backend, host, on_published, road
        self._device = device
        self.stats = PushStats()
        self.failure: BaseException | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._changed = threading.Condition()
        self._waiting: tuple[int, int] | None = None  # version and buffer
        self._active: int | None = None  # buffer of the push under way
        self._snapshots: Snapshots | None = None
        self._specs: tuple[TensorSpec, ...] = ()
        self._size = 0
        self._process: PublisherProcess | None = None
        self._words = Words(control.acks)
        self._epoch = 0
        self._formed = NO_EPOCH
        self._closing = self._warm = False
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    # -- for the trainer -----------------------------------------------------------------------------------------------

    def publish(self, version: int, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        """Snapshot ``tensors`` as ``version`` and return; a version that still waits is replaced.

        Tensors that come one by one (in the order that ``warm`` was told) go straight into the snapshot, so that their source
        need not hold them all.
        """
        if self.failure is not None:
            raise WeightPushError(f"the publisher has failed: {self.failure}") from self.failure
        started = time.monotonic()
        if isinstance(tensors, Mapping):
            if self._snapshots is None:
                self._allocate(layout.specs_of(tensors))
            tensors = tensors.items()
        snapshots = self._snapshots
        assert snapshots is not None, "tensors that come one by one need their specs first: call warm"
        with self._changed:
            buffer = 1 - self._active if self._active is not None else 0
            self._waiting = None
        with snapshots.writing(buffer):
            layout.write(self._specs, tensors, snapshots.flat[buffer])
        with self._changed:
            self._waiting = (version, buffer)
            self._changed.notify_all()
        self.stats.blocked_seconds += time.monotonic() - started

    def warm(self, specs: tuple[TensorSpec, ...]) -> None:
        """Make room for snapshots and start the publisher process, so that the first push does not wait for it."""
        self._allocate(specs)
        with self._changed:
            self._warm = True
            self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Wait until nothing is waiting or under way; returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting is None and self._active is None, timeout)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(self._timeout + 10)
        if self._process is not None:
            self._process.kill()
        if self._snapshots is not None:
            self._snapshots.close()

    def _allocate(self, specs: tuple[TensorSpec, ...]) -> None:
        self._specs = specs
        _, self._size = layout.places(self._specs)
        self._snapshots = Snapshots(self._size, self._device)
        self._process = PublisherProcess(
            self._device, self._size, self._snapshots.files, self._timeout, self._words.away
        )

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting is not None or self._closing or self._warm)
                    warm, self._warm = self._warm, False
                    if self._waiting is None and self._closing:
                        return
                if warm:
                    self._start_early()
                with self._changed:
                    if self._waiting is None:
                        continue
                    (version, buffer), self._waiting = self._waiting, None
                    self._active = buffer
                try:
                    self._publish(version, buffer)
                finally:
                    with self._changed:
                        self._active = None
                        self._changed.notify_all()
        except BaseException as error:  # the trainer's next publish raises it
            log.exception("the publisher has failed")
            self.failure = error

    def _start_early(self) -> None:
        assert self._process is not None
        try:
            self._process.running()
        except WeightPushError as error:  # the first push starts it again
            log.warning("%s", error)

    def _publish(self, version: int, buffer: int) -> None:
        assert self._snapshots is not None and self._process is not None
        self._snapshots.wait(buffer)
        started = time.monotonic()
        for attempt in range(ATTEMPTS):
            try:
                saved = self._process.order("save", buffer=buffer, specs=[[s.name, s.dtype, list(s.shape)] for s in self._specs],
                                            template=str(self._template), directory=str(self._directory), version=version, keep=self._keep)  # fmt: skip
                break
            except WeightPushError as error:
                log.warning("version %d could not be saved: %s", version, error)
                if attempt == ATTEMPTS - 1:
                    raise
                self._process.kill()
        path = Path(saved["path"])
        checksum = layout.checksum(self._snapshots.flat[buffer])
        push = Push(version, self._specs, self._bucket_bytes, checksum)
        for _ in range(ATTEMPTS):
            if self._deliver(self._process, push, buffer, path):
                break
        self._control.announce(version=version, path=str(path), epoch=self._epoch)
        self.stats.pushes += 1
        self.stats.bytes += self._size
        self.stats.push_seconds += time.monotonic() - started
        self._on_published(version, path, checksum)

    def _deliver(self, process: PublisherProcess, push: Push, buffer: int, path: Path) -> bool:
        """Bring ``push`` to all receivers; False if one failed and the others are to have it again."""
        members = self._control.receivers()
        if not members:
            self._formed = NO_EPOCH
            return True
        self._words.begin()
        try:
            if self._road == "disk":
                for member in members:
                    self._control.tell(member, "fetch", version=push.version, path=str(path), epoch=self._epoch)
            else:
                self._broadcast(process, push, buffer, members)
            missing = self._words.acknowledged(members, push, self._timeout)
        except WeightPushError as error:
            log.warning("version %d: %s", push.version, error)
            if self._road == "broadcast":
                process.kill()  # frees the survivors, who then say so
            self._evict(self._words.silent(members))
            return False
        self._evict(missing)
        return not missing

    def _broadcast(self, process: PublisherProcess, push: Push, buffer: int, members: Sequence[Member]) -> None:
        """Send the snapshot on the lanes of these members. Raises WeightPushError."""
        if self._formed != (process.start, tuple(m.identity for m in members)):
            self._form(process, members)
        wire = {"version": push.version, "specs": [[s.name, s.dtype, list(s.shape)] for s in push.specs],
                "bucket_bytes": push.bucket_bytes, "checksum": push.checksum, "epoch": self._epoch}  # fmt: skip
        for member in members:
            self._control.tell(member, "push", **wire)
        cuts = [[b.start, b.end] for b in layout.buckets(push.specs, push.bucket_bytes)]
        process.order("push", buffer=buffer, cuts=cuts)

    def _form(self, process: PublisherProcess, members: Sequence[Member]) -> None:
        """A new epoch: every receiver in lanes of ``lane`` with the publisher as rank 0. Raises WeightPushError, or RunFault if NCCL
        can never reach one of them."""
        if self._backend == "nccl":
            check_members(self._device, members)
        self._epoch += 1
        self._words.follow(self._epoch)
        self.stats.epochs += 1
        groups = [members[i : i + self._lane_size] for i in range(0, len(members), self._lane_size)]
        ports = process.order("stores", host=self._host, count=len(groups), timeout=self._timeout)["ports"]
        lanes = []
        for number, (group, port) in enumerate(zip(groups, ports, strict=True)):
            lane = Lane(
                self._epoch,
                f"epoch-{self._epoch}-{number}",
                self._host,
                port,
                0,
                1 + sum(member.receiver for member in group),
                self._backend,
                self._timeout,
            )
            lanes.append(lane)
            rank = 1
            for member in group:
                self._control.tell(member, "lane", **asdict(replace(lane, rank=rank)))
                rank += member.receiver
        process.order("join", lanes=[asdict(lane) for lane in lanes])
        self._formed = process.start, tuple(m.identity for m in members)
        log.info("epoch %d: %d receivers in %d lanes", self._epoch, len(members), len(lanes))

    def _evict(self, names: Sequence[str]) -> None:
        for name in names:
            log.warning("evicting %s", name)
            self._control.evict(name)
            self.stats.evicted[name] += 1
        if names:
            self._formed = NO_EPOCH

    @property
    def pid(self) -> int:
        """The publisher process; 0 before the first push."""
        return self._process.pid if self._process is not None else 0

    @property
    def restarts(self) -> int:
        """How often that process had to be started again."""
        return self._process.restarts if self._process is not None else 0
