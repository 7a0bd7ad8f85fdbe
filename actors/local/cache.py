"""Keys and values of sequences, one tensor a layer, in which those of a token lie side by side: written, and moved, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Keys and values of ``rows`` sequences of up to ``length`` tokens: per layer ``[rows, length, 2 KV, D]``, keys first."""

    def __init__(
        self, rows: int, length: int, *, kv_heads: int, head_dim: int, depth: int, dtype: torch.dtype, device: str
    ) -> None:
        self._shape, self.length = (rows, length, 2 * kv_heads, head_dim), length
        self._depth, self._dtype, self._device = depth, dtype, device
        self.allocate()

    def allocate(self) -> None:
        """Room for all rows, empty."""
        self.layers = [torch.zeros(self._shape, dtype=self._dtype, device=self._device) for _ in range(self._depth)]

    def release(self) -> None:
        """Hold nothing, until ``allocate``."""
        self.layers = []

    def move(self, device: str) -> None:
        """Hold what there is on ``device``."""
        self.layers = [layer.to(device) for layer in self.layers]

    def copy(self, source: Cache, from_row: int, to_row: int, length: int) -> None:
        """Copy the first ``length`` tokens of a row of ``source`` (which may be this cache)."""
        for mine, theirs in zip(self.layers, source.layers, strict=True):
            mine[to_row, :length] = theirs[from_row, :length]

    def fill(self, rows: slice, source: Cache, row: int, length: int) -> None:
        """Copy the first ``length`` tokens of a row of ``source`` to all of ``rows``."""
        for mine, theirs in zip(self.layers, source.layers, strict=True):
            mine[rows, :length] = theirs[row, :length]

    def move_rows(self, to: Tensor, source: Tensor, length: int) -> None:
        """Copy the first ``length`` tokens of rows ``source`` to rows ``to``, none of which is a source."""
        for layer in self.layers:
            layer[to, :length] = layer[source, :length]


def heads_first(layer: Tensor, kv_heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values ``[rows, KV, length, D]`` of what a cache has of a layer."""
    return layer[:, :, :kv_heads].transpose(1, 2), layer[:, :, kv_heads:].transpose(1, 2)
