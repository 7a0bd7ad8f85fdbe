"""Group-relative advantages: how much better a sample is than the others of its prompt.

GRPO, arXiv 2402.03300 eq. 6 (R1: arXiv 2501.12948 eq. 3); without std: Dr. GRPO, arXiv 2503.20783; RLOO: arXiv 2402.14740.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Std = Literal["population", "sample", "none"]


def group_advantages(rewards_G: Tensor, std: Std = "population", eps: float = 1e-6) -> Tensor:
    """``(R - mean) / (std + eps)`` over one group, ``[G] -> [G]`` in the rewards' dtype.

    Equal rewards give exactly 0, and so does a group of one.
    """
    if rewards_G.numel() < 2 or bool((rewards_G == rewards_G[0]).all()):
        return torch.zeros_like(rewards_G)
    centred = rewards_G - rewards_G.mean()
    if std == "none":
        return centred
    return centred / (rewards_G.std(correction=1 if std == "sample" else 0) + eps)


def leave_one_out_advantages(rewards_G: Tensor) -> Tensor:
    """RLOO: ``R_i`` minus the mean of the others, ``[G] -> [G]``; a group of one gives 0."""
    count = rewards_G.numel()
    if count < 2:
        return torch.zeros_like(rewards_G)
    return (rewards_G - rewards_G.mean()) * (count / (count - 1))
