"""Attention over packed segments: a token sees the earlier tokens of its own sequence and nothing else.

Registered with transformers as ``headrace_segments``; the plan travels as the forward argument ``segments``. Segments of
similar length are computed as one padded batch (causal, so padding on the right is never seen); no mask is ever made.
What would change the result is refused: attention dropout, soft caps, sinks, biases, and a sliding window where a segment is
longer than it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from broker.errors import EngineError

NAME = "headrace_segments"
FOREIGN = ("softcap", "s_aux", "position_bias")  # what other attentions of transformers know, and this one does not
SPREAD = 1.25  # longest over shortest segment of one padded batch


@dataclass(frozen=True, slots=True)
class Bucket:
    """Segments of similar length as a padded batch: ``index_NL`` is each place's token, ``valid_NL`` whether it is the segment's
    own (padding is not, nor a prefix that another segment holds)."""

    index_NL: Tensor
    valid_NL: Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """How the ``T`` tokens of a chunk fall into segments. ``order_T`` maps each token to its place among the buckets' outputs."""

    buckets: tuple[Bucket, ...]
    order_T: Tensor


def plan_segments(
    lengths: tuple[int, ...],
    device: torch.device | str = "cpu",
    prefixes: tuple[tuple[int, int], ...] | None = None,
) -> Segments:
    """The plan for segments of these lengths, laid end to end in this order.

    A segment sees the tokens at its prefix (start, length) before its own; they are computed again for it, and their own
    outputs come from the segment that holds them.
    """
    starts, at = [], 0
    for length in lengths:
        starts.append(at)
        at += length
    before = prefixes or ((0, 0),) * len(lengths)
    whole = [length + cut for length, (_, cut) in zip(lengths, before, strict=True)]
    by_length = sorted(range(len(lengths)), key=lambda i: whole[i])
    groups: list[list[int]] = []
    for i in by_length:
        if groups and whole[i] <= SPREAD * whole[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    buckets, order = [], torch.empty(at, dtype=torch.long)
    done = 0
    for members in groups:
        size = torch.tensor([whole[i] for i in members])[:, None]
        first = torch.tensor([starts[i] for i in members])[:, None]
        lead, cut = torch.tensor([before[i] for i in members])[:, :, None].unbind(1)
        place = torch.arange(int(size.max()))
        inside, valid = place < size, (place >= cut) & (place < size)
        index = torch.where(inside, torch.where(place < cut, lead + place, first + place - cut), first)
        count = int(valid.sum())
        order[index[valid]] = torch.arange(done, done + count)
        done += count
        buckets.append(Bucket(index.to(device), valid.to(device)))
    return Segments(tuple(buckets), order.to(device))


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """``query`` ``[1, H, T, D]``, ``key`` and ``value`` ``[1, KV, T, D]`` -> ``[1, T, H, D]``.

    Raises EngineError without a plan, and where the model asks for what this attention does not know.
    """
    if segments is None or attention_mask is not None:
        raise EngineError(f"attention {NAME!r} needs the argument 'segments' and no attention mask")
    foreign = [name for name in FOREIGN if others.get(name) is not None] + ["dropout"] * bool(dropout)
    if foreign:
        raise EngineError(f"packed training does not know the {', '.join(foreign)} of this model's attention")
    longest = max((bucket.index_NL.shape[1] for bucket in segments.buckets), default=0)
    if sliding_window is not None and longest > sliding_window:
        raise EngineError(
            f"a sequence of {longest} tokens is longer than the model's sliding window of {sliding_window}"
        )
    q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (query, key, value))
    grouped = q_THD.shape[1] != k_TKD.shape[1]
    pieces = []
    for bucket in segments.buckets:
        q, k, v = (x[bucket.index_NL].transpose(1, 2) for x in (q_THD, k_TKD, v_TKD))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        pieces.append(out.transpose(1, 2)[bucket.valid_NL])
    return torch.cat(pieces)[segments.order_T][None], None


def register() -> str:
    """Make the attention known to transformers; returns its name."""
    AttentionInterface.register(NAME, segment_attention)
    return NAME
