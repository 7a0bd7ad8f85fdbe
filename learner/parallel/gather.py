"""Gathers sharded weights on one rank, bucket by bucket, so that no GPU ever holds a full copy.

All ranks must make the same calls; only a bucket's owner gets its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

Named = list[tuple[str, Tensor]]


def named_tensors(model: Any) -> Named:
    """The tensors of a checkpoint of ``model``: its parameters by name, tied ones once, and its persistent buffers."""
    kept = model.state_dict(keep_vars=True)
    seen: set[int] = set()
    return [(name, t) for name, t in kept.items() if id(t) not in seen and not seen.add(id(t))]  # type: ignore[func-returns-value]


def buckets(named: Named, size: int) -> list[Named]:
    """Split ``named``, in order, into buckets of one dtype and at most ``size`` bytes; a larger tensor gets a bucket of its own."""
    out: list[Named] = []
    filled = 0
    for name, tensor in named:
        count = tensor.numel() * tensor.element_size()
        if not out or filled + count > size or tensor.dtype != out[-1][0][1].dtype:
            out.append([])
            filled = 0
        out[-1].append((name, tensor))
        filled += count
    return out


def owners(cut: Sequence[Named], world: int) -> list[int]:
    """The owner of each bucket: the rank that owns the fewest bytes of the buckets before it."""
    held, out = [0] * world, []
    for bucket in cut:
        out.append(min(range(world), key=lambda rank: (held[rank], rank)))
        held[out[-1]] += sum(t.numel() * t.element_size() for _, t in bucket)
    return out


@torch.no_grad()
def gathered(bucket: Named, mesh: DeviceMesh, owner: int) -> Iterator[tuple[str, Tensor]]:
    """Yields the full tensors of ``bucket`` on rank ``owner``, nothing on other ranks. At most one collective per bucket."""
    sharded = [t for _, t in bucket if isinstance(t, DTensor)]
    mine = [_padded(t.to_local(), -(-t.shape[0] // mesh.size())) for t in sharded]
    found: list[Tensor] = []
    if mine:
        flat = torch.cat([part.reshape(-1) for part in mine])
        found = [torch.empty_like(flat) for _ in range(mesh.size())] if mesh.get_local_rank() == owner else []
        dist.gather(flat, found or None, dst=owner, group=mesh.get_group())
    if mesh.get_local_rank() != owner:
        return
    at, parts = 0, iter(mine)
    for name, tensor in bucket:
        if not isinstance(tensor, DTensor):
            yield name, tensor.detach()
            continue
        part = next(parts)
        rows = torch.cat([piece[at : at + part.numel()].view(part.shape) for piece in found])
        yield name, rows[: tensor.shape[0]]
        at += part.numel()


def _padded(local: Tensor, rows: int) -> Tensor:
    if local.shape[0] == rows:
        return local
    return torch.cat([local, local.new_zeros(rows - local.shape[0], *local.shape[1:])])
