"""Group-relative advantages: how much better a sample is than the others of its prompt.

GRPO, arXiv 2402.03300 eq. 6 (R1: arXiv 2501.12948 eq. 3); without std: Dr. GRPO, arXiv 2503.20783; RLOO: arXiv 2402.14740.
Overlong rewards are shaped before: DAPO, arXiv 2503.14476 eq. 13.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Std = Literal["population", "sample", "batch", "none"]
Baseline = Literal["mean", "leave_one_out"]


def batch_advantages(
    rewards_N: Tensor,
    group_N: Tensor,
    std: Std = "population",
    eps: float = 1e-6,
    baseline: Baseline = "mean",
    judged_N: Tensor | None = None,
) -> Tensor:
    """``(R - baseline) / (std + eps)`` of every sample within its group, ``[N] -> [N]`` in the rewards' dtype.

    ``group_N`` int64 numbers each sample's group from 0. ``baseline``: the group's mean, or the mean of the others (RLOO).
    ``std`` is that of the group, or of all centred rewards of the batch (``batch``: REINFORCE++ with baseline, arXiv 2501.03262).
    Samples outside ``judged_N`` (bool) take no part and get 0, whatever their reward. A group whose judged rewards are all
    equal gives exactly 0, and so does a group of one.
    """
    judged = torch.ones_like(group_N, dtype=torch.bool) if judged_N is None else judged_N
    groups = int(group_N.max()) + 1 if group_N.numel() else 0
    inside = group_N[judged]
    known = rewards_N[judged]
    zeros_G = torch.zeros(groups, dtype=rewards_N.dtype, device=rewards_N.device)
    count_G = zeros_G.index_add(0, inside, torch.ones_like(known))
    highest_G = zeros_G.scatter_reduce(0, inside, known, "amax", include_self=False)
    lowest_G = zeros_G.scatter_reduce(0, inside, known, "amin", include_self=False)
    centred = known - (zeros_G.index_add(0, inside, known) / count_G.clamp(min=1))[inside]
    squares_G = zeros_G.index_add(0, inside, centred.square())
    scale_G = torch.ones_like(zeros_G)
    if baseline == "leave_one_out":
        scale_G = count_G / (count_G - 1).clamp(min=1)
    if std == "batch":
        scale_G = scale_G / ((squares_G.sum() / max(1, known.numel())).sqrt() + eps)
    elif std != "none":
        scale_G = scale_G / ((squares_G / (count_G - int(std == "sample")).clamp(min=1)).sqrt() + eps)
    advantages = torch.where((highest_G > lowest_G)[inside], centred * scale_G[inside], 0.0)
    return torch.zeros_like(rewards_N).index_put((judged.nonzero()[:, 0],), advantages)


def group_advantages(rewards_G: Tensor, std: Std = "population", eps: float = 1e-6) -> Tensor:
    """``(R - mean) / (std + eps)`` over one group, ``[G] -> [G]``; see ``batch_advantages``."""
    return batch_advantages(rewards_G, torch.zeros_like(rewards_G, dtype=torch.long), std, eps)


def leave_one_out_advantages(rewards_G: Tensor) -> Tensor:
    """RLOO: ``R_i`` minus the mean of the others, ``[G] -> [G]``; a group of one gives 0."""
    group_G = torch.zeros_like(rewards_G, dtype=torch.long)
    return batch_advantages(rewards_G, group_G, "none", baseline="leave_one_out")


def overlong_penalty(lengths_N: Tensor, longest: int, buffer: int, factor: float) -> Tensor:
    """What is added to the reward of a response of ``lengths_N`` tokens, ``[N] -> [N]`` (DAPO, arXiv 2503.14476 eq. 13).

    0 up to ``longest - buffer`` tokens, then falling linearly to ``-factor`` at ``longest``.
    """
    over = (lengths_N - (longest - buffer)) / buffer
    return -factor * over.clamp(min=0.0, max=1.0)
