"""Attention of one token a row to what the cache holds of it.

Two ways with one result. Torch's own kernel takes rows and heads one by one. For small models on a CPU that costs more than the
arithmetic, so there the heads of a row are taken together: each query stands among zeros at the place of its own key head, and what it
gathers of the other heads' values meets rows of zeros in the projection behind it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from actors.local.cache import heads_first

TOGETHER = 64
"""Key heads times their width up to which heads are taken together: beyond, arithmetic with zeros costs more than it saves."""


class Attention:
    """Of ``heads`` queries over ``kv_heads`` keys and values of ``head_dim`` each. ``mask [rows, length]`` is added to the scores."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: str) -> None:
        self.kv_heads, self.groups, self.head_dim = kv_heads, heads // kv_heads, head_dim
        self.together = kv_heads * head_dim <= TOGETHER and dtype == torch.float32 and device == "cpu"
        self._places = torch.eye(kv_heads, dtype=dtype, device=device).view(kv_heads, 1, kv_heads, 1) * head_dim**-0.5

    def projection(self, out: Tensor) -> Tensor:
        """``out [heads * D, hidden]`` as it is to stand behind ``__call__``."""
        if not self.together:
            return out
        wide = out.new_zeros(self.kv_heads, self.groups, self.kv_heads, self.head_dim, out.shape[1])
        for i, own in enumerate(out.view(self.kv_heads, self.groups, self.head_dim, -1)):
            wide[i, :, i] = own
        return wide.view(-1, out.shape[1])

    def __call__(self, query: Tensor, known: Tensor, mask: Tensor) -> Tensor:
        """What queries ``[rows, heads, D]`` gather from ``known [rows, length, 2 KV, D]``: ``[rows, n]``, for ``projection``."""
        rows, length = mask.shape
        query = query.view(rows, self.kv_heads, self.groups, self.head_dim)
        if not self.together:
            keys, values = heads_first(known, self.kv_heads)
            out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask[:, None, None])
            return out.reshape(rows, -1)
        width = self.kv_heads * self.head_dim
        keys, values = known.view(rows, length, 2 * width).split(width, 2)
        placed = (query[:, :, :, None] * self._places).view(rows, -1, width)
        shares = torch.baddbmm(mask[:, None], placed, keys.transpose(1, 2)).softmax(-1)
        return torch.bmm(shares, values).view(rows, -1)
