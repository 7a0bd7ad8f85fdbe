"""Cleans the inputs of a loss: NaN and infinity at masked places must not reach a gradient, not even as 0 * inf."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Clean(NamedTuple):
    """The cleaned tensors, the tokens that count, and how many were dropped for a non-finite value."""

    tensors: tuple[Tensor, ...]
    used: Tensor
    invalid: Tensor


def clean(mask: Tensor, *tensors: Tensor) -> Clean:
    """``mask`` and ``tensors`` of one shape. A trained token with a non-finite value is dropped and counted.

    ``torch.where`` comes before any arithmetic, so that nothing at an unused place takes part in it, forward or backward.
    """
    used = mask
    for tensor in tensors:
        used = used & torch.isfinite(tensor.detach())
    zeros = [torch.zeros((), dtype=t.dtype, device=t.device) for t in tensors]
    return Clean(
        tuple(torch.where(used, t, z) for t, z in zip(tensors, zeros, strict=True)), used, (mask & ~used).sum()
    )
