"""Causal attention over sequences of different lengths in one kernel: torch's FlashAttention, on CUDA in half precision.

Needs compute capability 8.0; inputs that it does not support are left to the padded batches of ``attention``.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

HALF = (torch.float16, torch.bfloat16)
LARGEST_HEAD = 256
CAUSAL = (-1, 0)  # a token attends to everything before it and nothing after it
KNOWN = frozenset(
    inspect.signature(varlen_attn).parameters
)  # the function still gains parameters from release to release


@dataclass(frozen=True, slots=True)
class Ragged:
    """Concatenated whole sequences. ``places_W``: the token index at each place; ``bounds_N1`` (int32): the start of each sequence, and
    the end; ``longest``: tokens of the longest one; ``order_T``: the place of each token's output."""

    places_W: Tensor
    bounds_N1: Tensor
    longest: int
    order_T: Tensor


def kernel_dtype(query_THD: Tensor) -> torch.dtype | None:
    """The dtype that the kernel computes in (autocast's, if on); None if it does not support these heads."""
    device, size = query_THD.device, query_THD.shape[-1]
    mixed = torch.is_autocast_enabled(device.type)
    kind = torch.get_autocast_dtype(device.type) if mixed else query_THD.dtype
    if device.type != "cuda" or kind not in HALF or size % 8 or size > LARGEST_HEAD or not _is_able(device):
        return None
    return kind


@cache
def _is_able(device: torch.device) -> bool:
    return {"scale", "window_size"} <= KNOWN and torch.cuda.get_device_capability(device) >= (8, 0)


def attend(
    query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, ragged: Ragged, scale: float | None, kind: torch.dtype
) -> Tensor:
    """Each token's output ``[T, H, D]``. Each of the ``K`` key heads serves ``H / K`` query heads."""
    q, k, v = (x.to(kind)[ragged.places_W] for x in (query_THD, key_TKD, value_TKD))
    grouped = q.shape[1] // k.shape[1]
    options: dict[str, Any] = {}
    if grouped > 1 and "enable_gqa" in KNOWN:
        options["enable_gqa"] = True
    elif grouped > 1:
        k, v = (x.repeat_interleave(grouped, 1) for x in (k, v))
    bounds, longest = ragged.bounds_N1, ragged.longest
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=CAUSAL, **options)
    assert isinstance(out, Tensor)
    return out[ragged.order_T]
