"""Tensors that are sharded over ranks by rows (dimension 0), as FSDP2 lays them, and those that are not: one way to treat both."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether each rank holds some rows of it only."""
    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, gathered from the ranks if it is sharded: all of them must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_sharded(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor that all ranks have, sharded as ``like`` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def first_row(rows: int, rank: int, world: int) -> int:
    """The first of ``rows`` rows that ``rank`` holds (``rows`` if it holds none)."""
    return min(rows, rank * -(-rows // world))


def from_rows(local: torch.Tensor, rows: int, mesh: DeviceMesh) -> torch.Tensor:
    """A tensor of ``rows`` rows from those that this rank holds."""
    shape = torch.Size((rows, *local.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
