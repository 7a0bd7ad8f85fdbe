"""M2PO's choice of tokens, which depends on the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor


def second_moment_mask(log_w: Tensor, advantages: Tensor, used: Tensor, limit: float) -> Tensor:
    """The tokens that M2PO keeps (arXiv 2510.01161), bool; over the whole batch, all arguments of one shape.

    Of the ``used`` tokens whose update moves pi further from mu (A > 0 and w > 1, A < 0 and w < 1) those with the largest
    ``(log w)^2`` are left out until the mean of the others' is at most ``limit``. NaN where not ``used`` does no harm.
    """
    away = used & (((advantages > 0) & (log_w > 0)) | ((advantages < 0) & (log_w < 0)))
    squares, order = log_w[away].double().square().sort(descending=True, stable=True)
    count = torch.arange(len(squares), 0, -1, device=log_w.device)
    dropped = int((squares.flip(0).cumsum(0).flip(0) / count > limit).sum())  # the means only fall
    kept = torch.ones(len(squares), dtype=torch.bool, device=log_w.device)
    kept[order[:dropped]] = False
    return torch.ones_like(used).masked_scatter(away, kept)
