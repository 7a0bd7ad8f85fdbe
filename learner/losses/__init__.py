"""Losses as pure functions of padded batches: ``N`` sequences of up to ``T`` response tokens. The trainer uses their parts.

    loss, metrics = grpo(logprobs_NT, behavior_logprobs_NT, advantages_N, mask_NT)

``logprobs_NT`` is differentiable, the others are constants; ``mask_NT`` bool. What is masked may hold anything, NaN included.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from learner.losses.aggregate import AGGREGATIONS
from learner.losses.guard import clean
from learner.losses.objectives import OBJECTIVES, Objective
from learner.losses.report import Tally
from learner.losses.terms import k3

__all__ = ["async_objective", "batch_loss", "dapo", "grpo"]

Result = tuple[Tensor, dict[str, float]]


def batch_loss(
    objective: Objective,
    logprobs_NT: Tensor,
    behavior_logprobs_NT: Tensor,
    advantages_N: Tensor,
    mask_NT: Tensor,
    ref_logprobs_NT: Tensor | None = None,
) -> Result:
    """The loss of ``objective`` (a scalar) and its metrics. Raises ValueError if the shapes do not agree."""
    if not logprobs_NT.shape == behavior_logprobs_NT.shape == mask_NT.shape or advantages_N.shape != mask_NT.shape[:1]:
        raise ValueError(
            f"shapes differ: logprobs {tuple(logprobs_NT.shape)}, behaviour {tuple(behavior_logprobs_NT.shape)}, "
            f"mask {tuple(mask_NT.shape)}, advantages {tuple(advantages_N.shape)}"
        )
    mask = mask_NT.bool()
    weight_N = AGGREGATIONS[objective.aggregation](mask.sum(1).to(logprobs_NT.dtype), objective.constant_length)
    advantages_NT = advantages_N[:, None].expand_as(logprobs_NT)
    (logprobs, behavior, advantages), used, invalid = clean(
        mask, logprobs_NT, behavior_logprobs_NT.detach(), advantages_NT
    )
    term = objective.term(logprobs, behavior, advantages, objective)
    loss_NT = term.loss
    tally = Tally()
    if objective.kl and ref_logprobs_NT is not None:
        (reference,), has_ref, _ = clean(used, ref_logprobs_NT.detach())
        divergence = torch.where(has_ref, k3(logprobs, reference), 0.0)
        loss_NT = loss_NT + objective.kl * divergence
        tally.count("kl_reference", float(divergence.detach().sum()))
    loss = (torch.where(used, loss_NT, 0.0) * weight_N[:, None]).sum()
    zeros = torch.zeros_like(logprobs)
    tally.add(term, logprobs, behavior, zeros, zeros, used)
    tally.count("tokens_invalid", float(invalid))
    return loss, tally.result()


def grpo(
    logprobs_NT: Tensor, behavior_logprobs_NT: Tensor, advantages_N: Tensor, mask_NT: Tensor, **settings: Any
) -> Result:
    """GRPO with PPO clipping of pi/mu (arXiv 2402.03300 eq. 3). ``settings`` replace fields of ``Objective``."""
    return _named("grpo", logprobs_NT, behavior_logprobs_NT, advantages_N, mask_NT, settings)


def dapo(
    logprobs_NT: Tensor, behavior_logprobs_NT: Tensor, advantages_N: Tensor, mask_NT: Tensor, **settings: Any
) -> Result:
    """DAPO (arXiv 2503.14476 eq. 8): clip-higher and the mean over tokens."""
    return _named("dapo", logprobs_NT, behavior_logprobs_NT, advantages_N, mask_NT, settings)


def async_objective(
    logprobs_NT: Tensor, behavior_logprobs_NT: Tensor, advantages_N: Tensor, mask_NT: Tensor, **settings: Any
) -> Result:
    """The default for asynchronous training: trust-region mask, capped importance weight, and a pull towards mu."""
    return _named("async", logprobs_NT, behavior_logprobs_NT, advantages_N, mask_NT, settings)


def _named(
    name: str, logprobs: Tensor, behavior: Tensor, advantages: Tensor, mask: Tensor, settings: dict[str, Any]
) -> Result:
    reference = settings.pop("ref_logprobs_NT", None)
    return batch_loss(replace(OBJECTIVES[name], **settings), logprobs, behavior, advantages, mask, reference)
