"""How a model's parameters lie in one flat run of bytes: the form that is snapshotted, broadcast and checked."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from broker.errors import WeightPushError
from broker.weights.sink import TensorSpec

ALIGN = 16  # bytes that each tensor's start is a multiple of


def specs_of(tensors: Mapping[str, Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items())


def places(specs: Sequence[TensorSpec]) -> tuple[list[tuple[int, int]], int]:
    """Start and size in bytes of each tensor, and the size of all. Raises WeightPushError for an unknown dtype."""
    out, at = [], 0
    for spec in specs:
        dtype = getattr(torch, spec.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise WeightPushError(f"parameter {spec.name!r} has dtype {spec.dtype!r}, which torch does not know")
        size = math.prod(spec.shape) * dtype.itemsize
        out.append((at, size))
        at += -(-size // ALIGN) * ALIGN
    return out, at


def write(tensors: Mapping[str, Tensor], flat: Tensor) -> None:
    """Copy ``tensors`` into ``flat`` (uint8), in order."""
    at, _ = places(specs_of(tensors))
    for (start, size), tensor in zip(at, tensors.values(), strict=True):
        flat[start : start + size].view(tensor.dtype).copy_(tensor.detach().reshape(-1))


def views(specs: Sequence[TensorSpec], flat: Tensor) -> dict[str, Tensor]:
    """The tensors that lie in ``flat``, without a copy."""
    at, _ = places(specs)
    return {
        spec.name: flat[start : start + size].view(getattr(torch, spec.dtype)).view(spec.shape)
        for spec, (start, size) in zip(specs, at, strict=True)
    }


def buckets(flat: Tensor, size: int) -> Iterator[Tensor]:
    """``flat`` cut into pieces of at most ``size`` bytes."""
    for at in range(0, flat.numel(), size):
        yield flat[at : at + size]


def checksum(flat: Tensor) -> str:
    """CRC-32 over all bytes: finds a broadcast that was cut or mixed (it is no defence against an attacker)."""
    return f"{zlib.crc32(flat.cpu().numpy().data):08x}"
