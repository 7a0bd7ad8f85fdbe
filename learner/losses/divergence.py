"""Divergences of one policy from another, estimated at the tokens that were sampled (J. Schulman, "Approximating KL divergence", 2020).

``q = log ref - log pi``. Beyond a bound each goes on as a straight line: its gradient is bounded, and never lost.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LIMIT = 20.0  # beyond this |q|, k2 continues linearly and k1 is cut
K3_LINEAR = 2.6108686381498756  # q beyond this: k3, which is 10 there, goes on linearly
K3_SLOPE = math.exp(K3_LINEAR) - 1


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """``log pi - log ref`` cut to +-20: KL(pi || ref) in the mean. As a loss its mean gradient is 0: it belongs into the reward."""
    return (logprobs - reference).clamp(-LIMIT, LIMIT)


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """``q^2 / 2``, linear beyond +-20: in the mean its gradient is that of KL(pi || ref)."""
    q = logprobs - reference
    return torch.where(q.abs() < LIMIT, q.clamp(-LIMIT, LIMIT).square() / 2, LIMIT * (q.abs() - LIMIT / 2))


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """``e^q - q - 1``, linear where that is above 10 (q above 2.61): KL(pi || ref) >= 0. Its slope in q lies between -1 and 12.7."""
    q = reference - logprobs
    near = q.clamp(max=K3_LINEAR)
    return torch.where(q < K3_LINEAR, near.exp() - near - 1, 10.0 + K3_SLOPE * (q - K3_LINEAR))


DIVERGENCES = {"k1": k1, "k2": k2, "k3": k3}
