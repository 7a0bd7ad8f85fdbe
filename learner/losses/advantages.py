"""Group-relative advantages: how much better a sample is than the others of its prompt.

GRPO, arXiv 2402.03300 eq. 6 (R1: arXiv 2501.12948 eq. 3); without std: Dr. GRPO, arXiv 2503.20783; RLOO: arXiv 2402.14740.
Values of steps: GRPO with process supervision, arXiv 2402.03300 section 4.1.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.losses.objectives import Baseline, Std
from learner.tables import FLAT


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
    equal, but for rounding (a part in a million), gives exactly 0, and so does a group of one.
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
    differ_G = highest_G - lowest_G > FLAT * torch.maximum(highest_G.abs(), lowest_G.abs())
    scale_G = torch.ones_like(zeros_G)
    if baseline == "leave_one_out":
        scale_G = count_G / (count_G - 1).clamp(min=1)
    if std == "batch":
        scale_G = scale_G / ((squares_G.sum() / max(1, known.numel())).sqrt() + eps)
    elif std != "none":
        scale_G = scale_G / ((squares_G / (count_G - int(std == "sample")).clamp(min=1)).sqrt() + eps)
    advantages = torch.where(differ_G[inside], centred * scale_G[inside], 0.0)
    return torch.zeros_like(rewards_N).index_put((judged.nonzero()[:, 0],), advantages)


def group_advantages(rewards_G: Tensor, std: Std = "population", eps: float = 1e-6) -> Tensor:
    """``(R - mean) / (std + eps)`` over one group, ``[G] -> [G]``; see ``batch_advantages``."""
    return batch_advantages(rewards_G, torch.zeros_like(rewards_G, dtype=torch.long), std, eps)


def leave_one_out_advantages(rewards_G: Tensor) -> Tensor:
    """RLOO: ``R_i`` minus the mean of the others, ``[G] -> [G]``; a group of one gives 0."""
    group_G = torch.zeros_like(rewards_G, dtype=torch.long)
    return batch_advantages(rewards_G, group_G, "none", baseline="leave_one_out")


Step = tuple[int, int, float]
"""Tokens ``start <= t < end`` of a sequence, and what this step of it is worth."""


def step_advantages(
    steps_G: Sequence[Sequence[Step]], lengths_G: Sequence[int], std: Std, eps: float = 1e-6
) -> list[Tensor]:
    """What each token of the sequences of one group gains from the values of steps: the sum of those that end behind it.

    The values are centred over all steps of the group, and divided by their standard deviation unless ``std`` is ``none``. Gives for
    each sequence float64 ``[lengths_G[g]]``.
    """
    values = torch.tensor([value for steps in steps_G for *_, value in steps], dtype=torch.float64)
    out = [torch.zeros(length, dtype=torch.float64) for length in lengths_G]
    if not len(values) or values.max() - values.min() <= FLAT * values.abs().max():
        return out
    scale = 1.0 if std == "none" else 1 / (float(values.std(correction=int(std == "sample"))) + eps)
    mean = float(values.mean())
    for gained, steps in zip(out, steps_G, strict=True):
        for _, end, value in steps:
            gained[:end] += (value - mean) * scale
    return out
