"""Causal attention over sequences of different lengths in one kernel: torch's FlashAttention, on CUDA in half precision.

Needs compute capability 8.0; whatever it does not take is left to the padded batches of ``attention``.
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
    """Whole sequences end to end. ``places_W``: the token at each place; ``bounds_N1`` int32: where each sequence begins, and the
    end; ``longest``: its tokens; ``order_T``: the place that holds each token's own output."""

    places_W: Tensor
    bounds_N1: Tensor
    longest: int
    order_T: Tensor


def kernel_dtype(query_THD: Tensor) -> torch.dtype | None:
    """The type that the kernel computes these heads in, autocast's where that is on; None if it does not take them."""
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
    """Each token's output ``[T, H, D]``; ``K`` heads of keys, each for ``H / K`` heads of queries."""
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
