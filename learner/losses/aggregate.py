"""From tokens to one number: the weight of each token in the loss, with the denominators of the global batch.

With weights given beforehand the loss is a plain sum, so it does not depend on micro-batches, packing, order or ranks.
Masked-out tokens stay in the denominators: masking must never raise the weight of the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Weights = Callable[[Tensor, int], Tensor]


def sequence_mean(lengths_N: Tensor, constant: int) -> Tensor:
    """``1 / (N |o_i|)`` for each token of sequence i (GRPO, arXiv 2402.03300 eq. 3). ``[N] -> [N]``."""
    return torch.where(lengths_N > 0, 1.0 / (lengths_N.clamp(min=1) * max(1, lengths_N.numel())), 0.0)


def token_mean(lengths_N: Tensor, constant: int) -> Tensor:
    """``1 / sum |o_i|`` (DAPO, arXiv 2503.14476 eq. 8)."""
    return torch.full_like(lengths_N, 1.0) / lengths_N.sum().clamp(min=1)


def constant(lengths_N: Tensor, constant: int) -> Tensor:
    """``1 / (N L)`` (Dr. GRPO, arXiv 2503.20783)."""
    return torch.full_like(lengths_N, 1.0 / (max(1, lengths_N.numel()) * constant))


AGGREGATIONS: dict[str, Weights] = {"sequence_mean": sequence_mean, "token_mean": token_mean, "constant": constant}
