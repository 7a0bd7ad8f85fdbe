"""Sums over the sequence that each token belongs to, given back to each of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sequences:
    """``index`` (int64) is the sequence that each token belongs to, ``used`` (bool) whether it counts; both have the tokens' shape.

    All tokens of a sequence must be in one call, so that its sum does not depend on micro-batches or packing.
    """

    index: Tensor
    used: Tensor

    def sum(self, values: Tensor) -> Tensor:
        """For each token the sum of ``values`` over the used tokens of its sequence; differentiable."""
        size = int(self.index.max()) + 1 if self.index.numel() else 0
        index, kept = self.index.reshape(-1), torch.where(self.used, values, 0.0).reshape(-1)
        return (
            torch.zeros(size, dtype=values.dtype, device=values.device)
            .index_add(0, index, kept)[index]
            .reshape(values.shape)
        )

    def mean(self, values: Tensor) -> Tensor:
        """As ``sum``, divided by the number of used tokens."""
        return self.sum(values) / self.lengths(values)

    def lengths(self, like: Tensor) -> Tensor:
        """For each token the number of used tokens of its sequence, at least 1; of the type of ``like``."""
        return self.sum(torch.ones_like(like)).clamp(min=1)
