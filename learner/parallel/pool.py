"""The placement of a pool: one model sharded over the ranks of a device mesh; rank 0 distributes work and gives orders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from broker.errors import RunFileError
from broker.weights.sink import TensorSpec
from learner.config import LearnerConfig
from learner.parallel.channel import Channel
from learner.parallel.gather import buckets, gathered, named_tensors
from learner.parallel.saving import PartSaver
from learner.parallel.sharding import frozen_copy, shard_model
from learner.parallel.watch import Watch
from learner.training.batch import PackedChunk
from learner.training.placement import Placement
from learner.training.shards import first_row, from_rows
from learner.training.share import Share, from_bytes, to_bytes
from learner.training.tensorfiles import Stored

END = "end"


class Pool(Placement):
    """``mesh`` has one dimension: the ranks over which the model is sharded. Made by ``learner.parallel.group.join``."""

    def __init__(self, mesh: DeviceMesh, orders: Channel, writers: Channel, watch: Watch | None) -> None:
        self.mesh, self.orders, self.writers, self._watch = mesh, orders, writers, watch
        self.rank, self.world = mesh.get_local_rank(), mesh.size()
        self.device = mesh.device_type
        self.mixed = self.gathered = False
        self._depth = 0

    def settle(self, config: LearnerConfig) -> None:
        check_stages(config)
        self.mixed, self.gathered = config.learner.dtype == "bfloat16", config.learner.pool_memory == "gathered"

    # -- orders --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def ordering(self, name: str, **fields: Any) -> Iterator[None]:
        if self.leads and not self._depth:
            self.orders.tell([name, fields])
        self._depth += 1
        yield
        self._depth -= 1  # not if the block failed: the others are then in an unknown state, and get no more orders

    def deal(self, share: Share, device: torch.device | str, name: str, **fields: Any) -> Share:
        with self.ordering(name, **fields):
            mine, *others = share.dealt(self.world)
            self.orders.give([to_bytes(part) for part in others])
            return mine.to(device)

    def received(self, device: torch.device | str) -> Share:
        """Other ranks: this rank's part of the ordered step."""
        return from_bytes(self.orders.take()).to(device)

    def heard(self) -> tuple[str, dict[str, Any]] | None:
        """Other ranks: wait for the next order, as name and fields; None at the end."""
        name, fields = self.orders.hear()
        return None if name == END else (name, fields)

    def end(self) -> None:
        if self._depth:
            return
        if self.leads:
            self.orders.tell([END, {}])
        if self._watch is not None:
            self._watch.end()
        dist.destroy_process_group()

    # -- the model -----------------------------------------------------------------------------------------------------

    def load_device(self, device: str) -> str:
        return "cpu"  # no GPU ever holds the full model

    def held(self, stored: Stored) -> Tensor:
        if not stored.shape:
            return stored.rows()
        rows = stored.shape[0]
        first, last = (first_row(rows, rank, self.world) for rank in (self.rank, self.rank + 1))
        return from_rows(stored.rows(first, last).to(self.device), rows, self.mesh)

    def shard(self, model: Any) -> Any:
        return shard_model(model, self.mesh, self.mixed, self.gathered)

    def frozen(self, model: Any) -> Any:
        return frozen_copy(model, self.mesh, self.mixed)

    def rounds(self, model: Any, chunks: Sequence[PackedChunk]) -> Iterator[PackedChunk]:
        for number, chunk in enumerate(chunks):
            if self.gathered:
                last = number == len(chunks) - 1
                model.set_requires_gradient_sync(last)
                model.set_reshard_after_backward(last)
            yield chunk

    # -- what others take of it ----------------------------------------------------------------------------------------

    def specs(self, model: Any, kind: torch.dtype) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, str(_as_published(tensor, kind)).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in named_tensors(model)
        )

    def weights(self, model: Any, kind: torch.dtype, bucket_bytes: int) -> Iterator[tuple[str, Tensor]]:
        with self.ordering("weights"):
            for bucket in buckets(named_tensors(model), bucket_bytes):
                for name, tensor in gathered(bucket, self.mesh, owner=0):
                    yield name, tensor.to(_as_published(tensor, kind))

    def saver(self) -> PartSaver:
        return PartSaver(self.mesh, self.writers, self.ordering)

    # -- sums ----------------------------------------------------------------------------------------------------------

    def added(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, group=self.mesh.get_group())
        return values

    def totals(
        self, sums: Mapping[str, float], maxima: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, float]]:
        mine = torch.tensor([*sums.values(), *maxima.values()], dtype=torch.float64, device=self.mesh.device_type)
        found = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(found, mine, group=self.mesh.get_group())
        everybody = torch.stack(found)
        total = everybody[:, : len(sums)].sum(0).tolist()
        highest = everybody[:, len(sums) :].amax(0).tolist() if maxima else []
        return dict(zip(sums, total, strict=True)), dict(zip(maxima, highest, strict=True))


def _as_published(tensor: Tensor, kind: torch.dtype) -> torch.dtype:
    return kind if tensor.is_floating_point() else tensor.dtype


def check_stages(config: LearnerConfig) -> None:
    """Raises RunFileError if the run file asks for something that a pool cannot do."""
    kind = config.learner.dtype
    if config.learner.colocated:
        raise RunFileError(
            "[learner] colocated = true: a pool takes no shifts with engines; give it devices of its own"
        )
    for index, stage in enumerate(config.stages):
        training, where = config.training(index), ""
        limits = stage.pool_limits()
        if training is not None:
            limits, where = {"lora": training.lora, "offload": training.offload}, "learner."
            if training.dtype != kind:
                raise RunFileError(
                    f"[[stage]] {stage.name} learner.dtype = {training.dtype!r}: a pool computes every stage in "
                    f"[learner] dtype = {kind!r}"
                )
        if limits.get("lora") is not None or limits.get("offload", "none") != "none":
            raise RunFileError(
                f"[[stage]] {stage.name} {where}lora and {where}offload are for a learner of one process: a pool shards instead"
            )
