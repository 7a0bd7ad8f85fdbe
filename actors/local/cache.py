"""Keys and values of sequences, one tensor a layer, so that a token is written, and a row moved, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Keys and values of ``rows`` sequences of up to ``length`` tokens: per layer ``[rows, KV, length, D]`` each, both in one tensor."""

    def __init__(
        self, rows: int, length: int, *, kv_heads: int, head_dim: int, depth: int, dtype: torch.dtype, device: str
    ) -> None:
        self._shape, self._kv_heads = (rows, 2 * kv_heads, length, head_dim), kv_heads
        self._depth, self._dtype, self._device = depth, dtype, device
        self.allocate()

    def allocate(self) -> None:
        """Room for all rows, empty."""
        self._hold([torch.zeros(self._shape, dtype=self._dtype, device=self._device) for _ in range(self._depth)])

    def release(self) -> None:
        """Hold nothing, until ``allocate``."""
        self._hold([])

    def move(self, device: str) -> None:
        """Hold what there is on ``device``."""
        self._hold([both.to(device) for both in self.both])

    def _hold(self, both: list[Tensor]) -> None:
        self.both = both  # per layer [rows, 2 KV, length, D]: keys, then values
        self.keys, self.values = ([b[:, part] for b in both] for part in self._parts())

    def _parts(self) -> tuple[slice, slice]:
        return slice(0, self._kv_heads), slice(self._kv_heads, None)

    def copy(self, source: Cache, from_row: int, to_row: int, length: int) -> None:
        """Copy the first ``length`` tokens of a row of ``source`` (which may be this cache)."""
        for a, b in zip(self.both, source.both, strict=True):
            a[to_row, :, :length] = b[from_row, :, :length]

    def fill(self, rows: slice, source: Cache, row: int, length: int) -> None:
        """Copy the first ``length`` tokens of a row of ``source`` to all of ``rows``."""
        for a, b in zip(self.both, source.both, strict=True):
            a[rows, :, :length] = b[row, :, :length]

    def move_rows(self, to: Tensor, source: Tensor, length: int) -> None:
        """Copy the first ``length`` tokens of rows ``source`` to rows ``to``, none of which is a source."""
        for both in self.both:
            both[to, :, :length] = both[source, :, :length]
