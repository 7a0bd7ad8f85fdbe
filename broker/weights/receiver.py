"""Receives weights by broadcast into a staging buffer; the engine gets them only when complete and verified."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from broker.errors import WeightPushError
from broker.weights import group, layout, sparse
from broker.weights.sink import Lane, Push

Apply = Callable[[int, Mapping[str, Tensor]], None]


def _nothing(*of: object) -> None:
    """Default ``rest`` and ``wake``, for an engine that has no device memory to release."""


class DistributedReceiver:
    """Implements ``WeightSink`` for engines that take tensors. ``apply(version, tensors)`` must return only once the engine samples from them.

    The engine keeps its old weights until then, so a failed push changes nothing.
    """

    ranks = 1
    ready = sparse = True

    def __init__(
        self, apply: Apply, device: str = "cpu", rest: Callable[[], None] = _nothing,
        wake: Callable[[int, float], None] = _nothing,
    ) -> None:  # fmt: skip
        self._apply, self._device, self._rest, self._wake = apply, device, rest, wake
        self._group: Any = None
        self._lane: Lane | None = None
        self._flat = torch.empty(0, dtype=torch.uint8)
        self._holds = -1  # the version that ``_flat`` holds completely

    def join(self, lane: Lane) -> None:
        self.leave()
        self._group, self._lane = group.join(lane), lane

    def receive(self, push: Push) -> str:
        if self._group is None or self._lane is None:
            raise WeightPushError("a push without a lane")
        if push.sparse:
            self._take_changes(push, self._group, self._lane)
        else:
            self._take_whole(push, self._group, self._lane)
        found = layout.checksum(self._flat)
        if found != push.checksum:
            raise WeightPushError(f"version {push.version} arrived with checksum {found}, not {push.checksum}")
        self._holds = push.version
        self._apply(push.version, layout.views(push.specs, self._flat))
        return found

    def _take_changes(self, push: Push, lane_group: Any, lane: Lane) -> None:
        """Receive changes and apply them if their base is held; always receive, since other members wait in the same broadcast."""
        changes = torch.empty(push.sparse, dtype=torch.uint8, device=self._flat.device)
        for start in range(0, push.sparse, push.bucket_bytes):
            group.broadcast(lane_group, changes[start : start + push.bucket_bytes], lane.timeout)
        if self._holds != push.base:
            raise WeightPushError(f"changes since version {push.base} came, and version {self._holds} is held")
        self._holds = -1
        sparse.apply(self._flat, changes)

    def _take_whole(self, push: Push, lane_group: Any, lane: Lane) -> None:
        _, size = layout.places(push.specs)
        self._holds = -1
        on = torch.device(self._device if lane.backend == "nccl" else "cpu")
        if self._flat.numel() != size or self._flat.device.type != on.type:
            lock = on.type == "cpu" and torch.device(self._device).type == "cuda"  # the engine copies it on
            self._flat = torch.empty(size, dtype=torch.uint8, device=on, pin_memory=lock)
        for bucket in layout.buckets(push.specs, push.bucket_bytes):
            group.broadcast(lane_group, self._flat[bucket.start : bucket.end], lane.timeout)

    def load(self, path: Path, version: int) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: dict[str, Tensor] = {}
            for file in sorted(path.glob("*.safetensors")):
                tensors.update(load_file(file))
        except (OSError, SafetensorError) as error:
            raise WeightPushError(f"weights of version {version} at {path} cannot be read: {error}") from error
        if not tensors:
            raise WeightPushError(f"no weights at {path}")
        self._apply(version, tensors)

    def leave(self) -> None:
        self._group = self._lane = None

    def rest(self) -> None:
        self._flat, self._holds = torch.empty(0, dtype=torch.uint8), -1
        self._rest()

    def wake(self, version: int, patience: float) -> None:
        self._wake(version, patience)
