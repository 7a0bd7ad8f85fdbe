"""The learner's side of the weight road: snapshots, membership epochs, pushes, evictions. Training never waits for it.

A thread drives the publisher process and kills it when a push does not finish in time: nothing else frees receivers that
are still in the collective. Members that did not answer are evicted and may join again; the others get the version in a new epoch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from broker.control.server import ControlServer, Member
from broker.errors import WeightPushError
from broker.weights import layout
from broker.weights.base import Base
from broker.weights.replies import Words
from broker.weights.road import Broadcast, Delivery, Disk, WeightRoad
from broker.weights.sink import Push, TensorSpec
from broker.weights.snapshot import Snapshots
from broker.weights.spare import begin as begin_process
from broker.weights.worker import PublisherProcess, Started

log = logging.getLogger("weights")
ATTEMPTS = 5  # tries for one version; receivers that still lack it get the next one


@dataclass(slots=True)
class PushStats:
    """Counts since the start; ``blocked_seconds`` is the time that callers spent in ``publish``."""

    pushes: int = 0
    evicted: Counter[str] = field(default_factory=Counter)
    """Evictions by the member's name."""
    epochs: int = 0
    bytes: int = 0
    """Bytes broadcast on each lane."""
    sparse: int = 0
    """Number of pushes that sent only changes."""
    push_seconds: float = 0.0
    blocked_seconds: float = 0.0

    @property
    def evictions(self) -> int:
        return self.evicted.total()


def saved_at(directory: Path, version: int) -> Path:
    """The directory of a version's copy on disk."""
    return directory / f"v-{version:08d}"


class WeightPublisher:
    """Publishes weights to all receivers on a thread of its own, with copies below ``directory``, of which the newest ``keep`` stay.

    ``template`` is a directory with the model's config and tokenizer. ``device`` holds the weights; ``nccl`` broadcasts from it. ``timeout``
    is the limit of a push in seconds, ``lane`` the most members of a lane. With ``sparse`` receivers get only the changes since the last
    version, if all of them have acknowledged it and the changes are smaller; this needs memory for one more snapshot.
    ``on_published(version, path, checksum)`` is called on the thread. ``begin`` starts the publisher process.
    """

    def __init__(
        self, control: ControlServer, directory: Path, *, template: Path, lane: int = 8, timeout: float = 60.0,
        bucket_bytes: int = 64 << 20, backend: str = "gloo", host: str = "127.0.0.1", keep: int = 2, device: str = "cpu",
        road: WeightRoad | Literal["broadcast", "disk"] = "broadcast",
        on_published: Callable[[int, Path, str], None] = lambda version, path, checksum: None, sparse: bool = False,
        begin: Callable[[Sequence[str], Sequence[int]], Started] = begin_process,
    ) -> None:  # fmt: skip
        self._begin = begin
        self._sparse = sparse and road == "broadcast" and backend == "gloo"
        self._base: Base | None = None
        self._control, self._directory, self._template = control, directory, template
        self._timeout, self._bucket_bytes, self._keep = timeout, bucket_bytes, keep
        self._on_published, self._device = on_published, device
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
        self._members: list[Member] = []  # receivers of the delivery under way
        self._road = road if not isinstance(road, str) else self._own_road(road, lane, backend, host, device)
        self._closing = self._warm = False
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def _own_road(self, name: str, lane: int, backend: str, host: str, device: str) -> WeightRoad:
        """The built-in road called ``name``."""
        roads: dict[str, Callable[[], WeightRoad]] = {
            "disk": lambda: Disk(self._control),
            "broadcast": lambda: Broadcast(
                self._control, self._words, self._running, size=lane, timeout=self._timeout, backend=backend, host=host, device=device
            ),
        }  # fmt: skip
        return roads[name]()

    # -- for the trainer -----------------------------------------------------------------------------------------------

    def publish(self, version: int, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        """Snapshot ``tensors`` as ``version`` and return without waiting for the push; replaces a version that still waits.

        An iterable of (name, tensor), in the order given to ``warm``, is copied tensor by tensor, so that its source need not hold them
        all. Raises WeightPushError if the thread has failed or the tensors do not match the specs.
        """
        self.check()
        started = time.monotonic()
        if isinstance(tensors, Mapping):
            if self._snapshots is None:
                self._allocate(layout.specs_of(tensors))
            tensors = tensors.items()
        snapshots = self._snapshots
        assert snapshots is not None, "tensors that come one by one need their specs first: call warm"
        with self._changed:
            taken = {self._active, self._base.buffer if self._base is not None else None}
            buffer = next(i for i in range(len(snapshots.flat)) if i not in taken)
            self._waiting = None
        with snapshots.writing(buffer):
            layout.write(self._specs, tensors, snapshots.flat[buffer])
        with self._changed:
            self._waiting = (version, buffer)
            self._changed.notify_all()
        self.stats.blocked_seconds += time.monotonic() - started

    def warm(self, specs: tuple[TensorSpec, ...]) -> None:
        """Allocate snapshots and start the publisher process in advance, so that the first push does not wait for them."""
        self._allocate(specs)
        with self._changed:
            self._warm = True
            self._changed.notify_all()

    def settle(self) -> None:
        """Wait for pushes that wait or are under way. Raises WeightPushError if they fail or do not end within ``ATTEMPTS`` time-outs."""
        if not self.wait(self._timeout * ATTEMPTS):
            raise WeightPushError("a push that does not end stands before weights of another shape")

    def reshape(self, specs: tuple[TensorSpec, ...]) -> None:
        """Publish weights with these ``specs`` from now on. Call ``settle`` first, then update the template, then this."""
        if self._process is not None:
            self._process.kill()
        if self._snapshots is not None:
            self._snapshots.close()
        self.warm(specs)

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds until no push waits or is under way; whether that is so. Raises WeightPushError as ``check``."""
        with self._changed:
            ended = self._changed.wait_for(lambda: self._waiting is None and self._active is None, timeout)
        self.check()
        return ended

    def check(self) -> None:
        """Raises WeightPushError if the thread has failed: nothing is published any more."""
        if self.failure is not None:
            raise WeightPushError(f"the publisher has failed: {self.failure}") from self.failure

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
        self._snapshots, self._base = Snapshots(self._size, self._device, 3 if self._sparse else 2), None
        starts = self._process.starts if self._process is not None else 0
        self._process = PublisherProcess(
            self._device, self._size, self._snapshots.files, self._timeout, self._away, starts, self._begin
        )

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._active = None
                    self._changed.notify_all()
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
                self._publish(version, buffer)
        except BaseException as error:  # ``check`` raises it
            log.exception("the publisher has failed")
            with self._changed:
                self.failure, self._active, self._waiting = error, None, None
                self._changed.notify_all()

    def _start_early(self) -> None:
        assert self._process is not None
        try:
            self._process.running()
        except WeightPushError as error:  # the first push tries again
            log.warning("%s", error)

    def _publish(self, version: int, buffer: int) -> None:
        assert self._snapshots is not None
        self._snapshots.wait(buffer)
        started = time.monotonic()
        path = saved_at(self._directory, version)
        if self._road.saved_first:
            self._save(version, buffer)
        flat = self._snapshots.flat[buffer]
        push = Push(version, self._specs, self._bucket_bytes, layout.checksum(flat))
        for attempt in range(ATTEMPTS):
            sent = self._changes(push, buffer) if self._sparse and not attempt else push
            if self._deliver(Delivery(sent, buffer, flat, path)):
                break
        self._acknowledged(sent, buffer)
        self.stats.push_seconds += time.monotonic() - started
        if not self._road.saved_first:
            self._save(version, buffer)
        self._control.announce(version=version, path=str(path), epoch=self._road.epoch)
        self.stats.pushes += 1
        self.stats.bytes += sent.sparse or self._size
        self.stats.sparse += bool(sent.sparse)
        self._on_published(version, path, push.checksum)

    def _changes(self, push: Push, buffer: int) -> Push:
        """``push`` as changes only, if all receivers hold the base version and the changes are worth it; else ``push`` itself."""
        base = self._base
        if base is None or not base.held_by(self._control.receivers()):
            return push
        try:
            return base.changes(self._running(), push, buffer, self._size)
        except WeightPushError as error:
            log.warning("version %d goes whole: %s", push.version, error)
            return push

    def _acknowledged(self, push: Push, buffer: int) -> None:
        """Make this version the base of the next sparse push."""
        if self._sparse:
            with self._changed:
                self._base = Base(push.version, buffer, frozenset(m.identity for m in self._members))

    def _save(self, version: int, buffer: int) -> None:
        """Write the copy on disk, for late joiners, evicted members and a recovering learner. Raises WeightPushError."""
        for attempt in range(ATTEMPTS):
            try:
                self._running().order("save", buffer=buffer, specs=[[s.name, s.dtype, list(s.shape)] for s in self._specs],
                                      template=str(self._template), directory=str(self._directory), version=version, keep=self._keep)  # fmt: skip
                return
            except WeightPushError as error:
                log.warning("version %d could not be saved: %s", version, error)
                if attempt == ATTEMPTS - 1:
                    raise
                self._running().kill()

    def _running(self) -> PublisherProcess:
        assert self._process is not None, "there is nothing to publish yet"
        return self._process

    def _deliver(self, delivery: Delivery) -> bool:
        """Bring a version to all receivers; False if any failed, so that it must be delivered again."""
        members = self._members = self._control.receivers()
        if not members and self._road.acknowledged:
            return True
        self._words.begin()
        try:
            self._road.deliver(delivery, members)
            missing = (
                self._words.acknowledged(members, delivery.push, self._timeout, self._control.lives)
                if self._road.acknowledged
                else []
            )
        except WeightPushError as error:
            log.warning("version %d: %s", delivery.push.version, error)
            self._road.free()
            self._evict(self._words.silent(members, self._control.lives))
            self._members = []
            return False
        finally:
            self.stats.epochs = self._road.epoch
        self._evict(missing)
        return not missing

    def _away(self) -> str:
        """Why the delivery under way cannot succeed (a member is away or dead); empty if it still can."""
        gone = next((member.name for member in self._members if not self._control.lives(member)), "")
        return self._words.away() or (f"{gone} is not heard of any more" if gone else "")

    def _evict(self, names: Sequence[str]) -> None:
        for name in names:
            log.warning("evicting %s", name)
            self._control.evict(name)
            self.stats.evicted[name] += 1

    @property
    def pid(self) -> int:
        """Process id of the publisher process; 0 if none was started."""
        return self._process.pid if self._process is not None else 0

    @property
    def restarts(self) -> int:
        """How often the publisher process was started again."""
        return self._process.restarts if self._process is not None else 0
