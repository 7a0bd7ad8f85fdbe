"""The ways for a version to reach the receivers: broadcast in lanes, a shared disk, or directly within one process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from broker.control.server import ControlServer, Member
from broker.weights import layout
from broker.weights.devices import check_members
from broker.weights.replies import Words
from broker.weights.sink import Lane, Push
from broker.weights.worker import PublisherProcess

log = logging.getLogger("weights")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One version to deliver: ``flat`` (uint8 ``[size]``) is the snapshot, ``buffer`` its number in the publisher process. ``path`` is
    its copy on disk, which may not be saved yet."""

    push: Push
    buffer: int
    flat: Tensor
    path: Path


class WeightRoad(Protocol):
    """The way that ``WeightPublisher`` delivers versions; the publisher itself waits for acknowledgements."""

    saved_first: bool
    """Whether the copy on disk is written before the delivery instead of after it."""
    acknowledged: bool
    """Whether receivers confirm each version on the control road."""

    @property
    def epoch(self) -> int:
        """The membership epoch: incremented whenever the lanes change (0: not yet)."""

    def deliver(self, delivery: Delivery, members: Sequence[Member]) -> None:
        """Deliver a version to ``members``. Raises WeightPushError if it did not reach all of them, RunFault if it never can."""

    def free(self) -> None:
        """Called after a failed delivery: free the receivers that still wait in it."""


class Disk:
    """Members load the copy from a disk that all of them can read."""

    saved_first, acknowledged, epoch = True, True, 0

    def __init__(self, control: ControlServer) -> None:
        self._control = control

    def deliver(self, delivery: Delivery, members: Sequence[Member]) -> None:
        for member in members:
            self._control.tell(
                member, "fetch", version=delivery.push.version, path=str(delivery.path), epoch=self.epoch
            )

    def free(self) -> None:
        """Nobody waits for anybody."""


class Direct:
    """Passes the tensors to engines in this process, when a whole run is one process."""

    saved_first, acknowledged, epoch = False, False, 0

    def __init__(self, engines: Iterable[Callable[[int, Mapping[str, Tensor]], None]]) -> None:
        self._engines = tuple(engines)

    def deliver(self, delivery: Delivery, members: Sequence[Member]) -> None:
        tensors = layout.views(delivery.push.specs, delivery.flat)
        for apply in self._engines:
            apply(delivery.push.version, tensors)

    def free(self) -> None:
        """Nobody waits for anybody."""


class Broadcast:
    """Broadcasts in lanes of up to ``size`` members, with the publisher process as rank 0 of each. A member that joins or leaves
    re-forms only its own lane. ``device`` holds the weights; the backend ``nccl`` broadcasts from it. ``timeout`` is in seconds."""

    saved_first, acknowledged = False, True

    def __init__(
        self, control: ControlServer, words: Words, process: Callable[[], PublisherProcess], *, size: int = 8, timeout: float = 60.0,
        backend: str = "gloo", host: str = "127.0.0.1", device: str = "cpu",
    ) -> None:  # fmt: skip
        self._control, self._words, self._process = control, words, process
        self._size, self._timeout, self.backend, self._host, self._device = size, timeout, backend, host, device
        self.epoch = 0
        self._start = 0  # number of the process start that the lanes were formed with
        self._lanes: dict[str, tuple[bytes, ...]] = {}  # the receivers' identities, in order of rank

    def deliver(self, delivery: Delivery, members: Sequence[Member]) -> None:
        process, push = self._process(), delivery.push
        self._form(process, members)
        wire = {"version": push.version, "specs": [[s.name, s.dtype, list(s.shape)] for s in push.specs],
                "bucket_bytes": push.bucket_bytes, "checksum": push.checksum, "epoch": self.epoch}  # fmt: skip
        if push.sparse:
            wire |= {"base": push.base, "sparse": push.sparse}
        for member in members:
            self._control.tell(member, "push", **wire)
        cuts = [[b.start, b.end] for b in layout.buckets(push.specs, push.bucket_bytes)]
        if push.sparse:
            starts = range(0, push.sparse, push.bucket_bytes)
            cuts = [[start, min(start + push.bucket_bytes, push.sparse)] for start in starts]
        process.order("push", buffer=delivery.buffer, cuts=cuts, sparse=bool(push.sparse))

    def free(self) -> None:
        self._process().kill()  # the survivors then report a failed broadcast

    def _form(self, process: PublisherProcess, members: Sequence[Member]) -> None:
        """Form lanes so that all ``members`` are in one. Raises WeightPushError, or RunFault if NCCL can never reach a member."""
        kept, entering = self._sorted(process, members)
        if not entering and kept.keys() == self._lanes.keys():
            return
        if self.backend == "nccl":
            check_members(self._device, members)
        self.epoch += 1
        self._words.follow(self.epoch)
        groups = [entering[i : i + self._size] for i in range(0, len(entering), self._size)]
        names = [f"epoch-{self.epoch}-{number}" for number in range(len(groups))]
        ports = process.order("stores", host=self._host, names=names, keep=list(kept), timeout=self._timeout)["ports"]
        lanes = []
        for name, group, port in zip(names, groups, ports, strict=True):
            world = 1 + sum(member.receiver for member in group)
            lane = Lane(self.epoch, name, self._host, port, 0, world, self.backend, self._timeout)
            lanes.append(lane)
            rank = 1
            for member in group:
                self._control.tell(member, "lane", **asdict(replace(lane, rank=rank)))
                rank += member.receiver
            kept[name] = tuple(member.identity for member in group)
        if lanes:
            process.order("join", lanes=[asdict(lane) for lane in lanes])
        self._start, self._lanes = process.start, kept
        log.info("epoch %d: %d receivers in %d lanes, %d of them new", self.epoch, len(members), len(kept), len(lanes))

    def _sorted(
        self, process: PublisherProcess, members: Sequence[Member]
    ) -> tuple[dict[str, tuple[bytes, ...]], list[Member]]:
        """The lanes to keep, and the members that need a new one. New members join the shortest lane, if it has room, which is then re-formed."""
        if process.start != self._start:  # a new process knows no lanes
            self._lanes = {}
        here = {member.identity for member in members}
        kept = {name: lane for name, lane in self._lanes.items() if here.issuperset(lane)}
        placed = {identity for lane in kept.values() for identity in lane}
        if here - placed and kept:
            shortest = min(kept, key=lambda name: len(kept[name]))
            if len(kept[shortest]) < self._size:
                placed -= set(kept.pop(shortest))
        return kept, [member for member in members if member.identity not in placed]
