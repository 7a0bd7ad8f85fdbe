"""Attention over packed segments: a token sees the earlier tokens of its own sequence and nothing else.

Registered with transformers as ``headrace_segments``; the plan is passed as the forward argument ``segments``. Segments of
similar length are computed as one padded batch; attention is causal, so right padding is never seen and needs no mask. On
CUDA in half precision one kernel computes all segments without padding (``varlen``).
Anything else that would change the result is refused: attention dropout, soft caps, sinks, biases, and a segment longer than
the sliding window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from broker.errors import EngineError
from learner.model import varlen
from learner.model.varlen import Ragged

NAME = "headrace_segments"
FOREIGN = (
    "softcap",
    "s_aux",
    "position_bias",
)  # options of other attentions of transformers that this one does not support
SPREAD = 1.25  # largest ratio of the longest to the shortest segment of one padded batch


@dataclass(frozen=True, slots=True)
class Segments:
    """How the ``T`` tokens of a chunk are laid out for attention: each sequence complete, with any prefix that it shares with another.

    ``places_F``: the token index at each place of the padded batches, concatenated; ``shapes``: (sequences, length)
    of each batch. ``order_T``: the place of each token's output. ``ragged``: the plan without padding (CUDA only).
    """

    places_F: Tensor
    shapes: tuple[tuple[int, int], ...]
    order_T: Tensor
    ragged: Ragged | None = None

    @property
    def longest(self) -> int:
        return max((length for _, length in self.shapes), default=0)


def plan_segments(
    lengths: tuple[int, ...],
    device: torch.device | str = "cpu",
    prefixes: tuple[tuple[int, int], ...] | None = None,
) -> Segments:
    """The plan for segments of these ``lengths`` in tokens, concatenated in this order.

    A segment attends to the tokens of its prefix (start, length) before its own. These are computed again for it; their
    outputs come from the segment that contains them.
    """
    pieces = _pieces(lengths, prefixes)
    groups: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: piece.size):
        if groups and piece.size <= SPREAD * groups[-1][0].size:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    places, shapes, order_T, at = [torch.empty(0, dtype=torch.long)], [], torch.empty(sum(lengths), dtype=torch.long), 0
    for members in groups:
        index_NL, _, own_NL = _padded(members)
        own = own_NL.flatten().nonzero()[:, 0]
        order_T[index_NL[own_NL]] = at + own
        places.append(index_NL.flatten())
        shapes.append((len(members), index_NL.shape[1]))
        at += index_NL.numel()
    ragged = ragged_plan(lengths, device, prefixes) if torch.device(device).type == "cuda" and lengths else None
    return Segments(torch.cat(places).to(device), tuple(shapes), order_T.to(device), ragged)


class Piece(NamedTuple):
    """One sequence: the starts of its own tokens and of its prefix, the prefix's length, and the total length."""

    start: int
    lead: int
    cut: int
    size: int


def _pieces(lengths: tuple[int, ...], prefixes: tuple[tuple[int, int], ...] | None) -> list[Piece]:
    starts = accumulate(lengths, initial=0)
    before = prefixes or ((0, 0),) * len(lengths)
    return [
        Piece(start, lead, cut, length + cut)
        for start, length, (lead, cut) in zip(starts, lengths, before, strict=False)
    ]


def _padded(members: Sequence[Piece]) -> tuple[Tensor, Tensor, Tensor]:
    """Three ``[N, L]`` tensors of a padded batch: the token index at each place, whether it is no padding, and whether it is an own token."""
    start, lead, cut, size = torch.tensor(members)[:, :, None].unbind(1)
    place = torch.arange(int(size.max()))
    inside, own = place < size, (place >= cut) & (place < size)
    index = torch.where(inside, torch.where(place < cut, lead + place, start + place - cut), start)
    return index, inside, own


def ragged_plan(
    lengths: tuple[int, ...],
    device: torch.device | str,
    prefixes: tuple[tuple[int, int], ...] | None = None,
) -> Ragged:
    """Like ``plan_segments``, without padding."""
    pieces = _pieces(lengths, prefixes)
    index_NL, inside_NL, own_NL = _padded(pieces)
    sizes_N = torch.tensor([piece.size for piece in pieces])
    bounds_N1 = F.pad(sizes_N.cumsum(0), (1, 0)).to(torch.int32)
    places_W, order_T = index_NL[inside_NL], torch.empty(int(own_NL.sum()), dtype=torch.long)
    own_W = own_NL[inside_NL]
    order_T[places_W[own_W]] = own_W.nonzero()[:, 0]
    return Ragged(places_W.to(device), bounds_N1.to(device), int(sizes_N.max()), order_T.to(device))


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

    Raises EngineError if there is no plan, or if the model needs a feature that this attention does not support.
    """
    if segments is None or attention_mask is not None:
        raise EngineError(f"attention {NAME!r} needs the argument 'segments' and no attention mask")
    foreign = [name for name in FOREIGN if others.get(name) is not None] + ["dropout"] * bool(dropout)
    if foreign:
        raise EngineError(f"packed training does not know the {', '.join(foreign)} of this model's attention")
    if sliding_window is not None and segments.longest > sliding_window:
        raise EngineError(
            f"a sequence of {segments.longest} tokens is longer than the model's sliding window of {sliding_window}"
        )
    q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (query, key, value))
    if segments.ragged is not None and (kind := varlen.kernel_dtype(q_THD)) is not None:
        return varlen.attend(q_THD, k_TKD, v_TKD, segments.ragged, scaling, kind)[None], None
    sizes = [count * length for count, length in segments.shapes]
    parts = zip(*(x[segments.places_F].split(sizes) for x in (q_THD, k_TKD, v_TKD)), strict=True)
    grouped = q_THD.shape[1] != k_TKD.shape[1]
    pieces = []
    for shape, part in zip(segments.shapes, parts, strict=True):
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in part)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        pieces.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(pieces)[segments.order_T][None], None


def register() -> str:
    """Register this attention with transformers; returns its name."""
    AttentionInterface.register(NAME, segment_attention)
    return NAME
