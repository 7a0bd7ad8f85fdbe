"""The layout of a model's parameters in one flat byte buffer, which is snapshotted, broadcast and checksummed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from crc32c import crc32c
from torch import Tensor

from broker.errors import WeightPushError
from broker.weights.sink import TensorSpec

ALIGN = 16  # alignment in bytes of the start of each run of tensors of one dtype


@dataclass(frozen=True, slots=True)
class Bucket:
    """Adjacent whole tensors of one dtype: ``specs[first:last]`` in bytes ``start`` to ``end`` (exclusive)."""

    first: int
    last: int
    start: int
    end: int


def specs_of(tensors: Mapping[str, Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items())


def places(specs: Sequence[TensorSpec]) -> tuple[list[tuple[int, int]], int]:
    """Start and size of each tensor, and the total size, all in bytes. Raises WeightPushError for an unknown dtype."""
    out: list[tuple[int, int]] = []
    at, before = 0, ""
    for spec in specs:
        dtype = getattr(torch, spec.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise WeightPushError(f"parameter {spec.name!r} has dtype {spec.dtype!r}, which torch does not know")
        size = math.prod(spec.shape) * dtype.itemsize
        if spec.dtype != before:
            at, before = -(-at // ALIGN) * ALIGN, spec.dtype
        out.append((at, size))
        at += size
    return out, at


def write(specs: Sequence[TensorSpec], tensors: Iterable[tuple[str, Tensor]], flat: Tensor) -> None:
    """Copy ``tensors`` into ``flat`` (uint8 ``[size]``) one by one, without keeping them.

    Copies from a GPU are queued on the current stream (see ``snapshot``).
    Raises WeightPushError if names, dtypes or shapes differ from ``specs``.
    """
    at, _ = places(specs)
    rest = iter(tensors)
    for spec, (start, size) in zip(specs, at, strict=True):
        name, tensor = next(rest, ("nothing", flat))
        if specs_of({name: tensor}) != (spec,):
            raise WeightPushError(
                f"{name!r} {tensor.dtype} {tuple(tensor.shape)} came where {spec.name!r} {spec.dtype} {spec.shape} was to come"
            )
        flat[start : start + size].view(tensor.dtype).copy_(tensor.detach().reshape(-1), non_blocking=True)
    for name, _ in rest:
        raise WeightPushError(f"{name!r} came after the last parameter")


def views(specs: Sequence[TensorSpec], flat: Tensor) -> dict[str, Tensor]:
    """The tensors in ``flat`` (uint8) by name, without copying."""
    at, _ = places(specs)
    return {
        spec.name: flat[start : start + size].view(getattr(torch, spec.dtype)).view(spec.shape)
        for spec, (start, size) in zip(specs, at, strict=True)
    }


def buckets(specs: Sequence[TensorSpec], size: int) -> list[Bucket]:
    """Split the tensors into buckets of at most ``size`` bytes, one broadcast each. A larger tensor gets a bucket of its own."""
    at, _ = places(specs)
    out: list[Bucket] = []
    for i, (spec, (start, length)) in enumerate(zip(specs, at, strict=True)):
        last = out[-1] if out else None
        if last and specs[last.first].dtype == spec.dtype and start + length - last.start <= size:
            out[-1] = Bucket(last.first, i + 1, last.start, start + length)
        else:
            out.append(Bucket(i, i + 1, start, start + length))
    return out


def checksum(flat: Tensor) -> str:
    """CRC-32C over all bytes, as 8 hex digits. Detects a truncated or mixed-up broadcast, not an attacker; CPUs have an instruction for it."""
    return f"{crc32c(flat.cpu().numpy().data):08x}"
