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
from learner.losses.objectives import OBJECTIVES, Objective
from learner.losses.tally import Tally
from learner.losses.tokens import kept_tokens, token_losses

__all__ = ["async_objective", "batch_loss", "dapo", "grpo", "topr"]

Result = tuple[Tensor, dict[str, float]]


def batch_loss(
    objective: Objective,
    logprobs_NT: Tensor,
    behavior_logprobs_NT: Tensor,
    advantages_N: Tensor,
    mask_NT: Tensor,
    ref_logprobs_NT: Tensor | None = None,
    entropy_NT: Tensor | None = None,
) -> Result:
    """The loss of ``objective`` (a scalar) and its metrics. Raises ValueError if the shapes do not agree."""
    reference = logprobs_NT if ref_logprobs_NT is None else ref_logprobs_NT
    if (
        not logprobs_NT.shape == behavior_logprobs_NT.shape == mask_NT.shape == reference.shape
        or logprobs_NT.ndim != 2
        or advantages_N.shape != mask_NT.shape[:1]
    ):
        raise ValueError(
            f"shapes differ: logprobs {tuple(logprobs_NT.shape)}, behaviour {tuple(behavior_logprobs_NT.shape)}, "
            f"mask {tuple(mask_NT.shape)}, advantages {tuple(advantages_N.shape)}, reference {tuple(reference.shape)}"
        )
    mask = mask_NT.bool()
    advantages_NT = advantages_N[:, None].expand_as(logprobs_NT)
    kept = kept_tokens(objective, logprobs_NT, behavior_logprobs_NT, advantages_NT, mask)
    tokens = token_losses(
        objective,
        logprobs_NT,
        behavior_logprobs_NT,
        advantages_NT,
        mask,
        ref_logprobs_NT,
        kept=kept,
        entropy=entropy_NT,
    )
    weight_N = AGGREGATIONS[objective.aggregation](mask.sum(1).to(tokens.loss.dtype), objective.constant_length)
    tally = Tally()
    tally.add(tokens, torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask))
    return (tokens.loss * weight_N[:, None]).sum(), tally.result()


def grpo(
    logprobs_NT: Tensor, behavior_logprobs_NT: Tensor, advantages_N: Tensor, mask_NT: Tensor, **settings: Any
) -> Result:
    """GRPO with PPO clipping of pi/mu (arXiv 2402.03300 eq. 3).

    ``settings`` replace fields of ``Objective``; with ``kl`` > 0 also ``ref_logprobs_NT``, of the reference policy, and with
    ``entropy_bonus`` > 0 ``entropy_NT`` of the policy, differentiable.
    """
    return _named("grpo", logprobs_NT, behavior_logprobs_NT, advantages_N, mask_NT, settings)


def dapo(
    logprobs_NT: Tensor, behavior_logprobs_NT: Tensor, advantages_N: Tensor, mask_NT: Tensor, **settings: Any
) -> Result:
    """DAPO (arXiv 2503.14476 eq. 8): clip-higher and the mean over tokens. ``settings`` as for ``grpo``."""
    return _named("dapo", logprobs_NT, behavior_logprobs_NT, advantages_N, mask_NT, settings)


def topr(
    logprobs_NT: Tensor, behavior_logprobs_NT: Tensor, advantages_N: Tensor, mask_NT: Tensor, **settings: Any
) -> Result:
    """TOPR (arXiv 2503.14286 eq. 8): the negatives' importance weights tapered to at most 1. ``settings`` as for ``grpo``."""
    return _named("topr", logprobs_NT, behavior_logprobs_NT, advantages_N, mask_NT, settings)


def async_objective(
    logprobs_NT: Tensor, behavior_logprobs_NT: Tensor, advantages_N: Tensor, mask_NT: Tensor, **settings: Any
) -> Result:
    """The default for asynchronous training: the importance weight of the whole sequence, capped, and tempered where the sequence is long.

    ``settings`` as for ``grpo``.
    """
    return _named("async", logprobs_NT, behavior_logprobs_NT, advantages_N, mask_NT, settings)


def _named(
    name: str, logprobs: Tensor, behavior: Tensor, advantages: Tensor, mask: Tensor, settings: dict[str, Any]
) -> Result:
    reference, entropy = settings.pop("ref_logprobs_NT", None), settings.pop("entropy_NT", None)
    return batch_loss(replace(OBJECTIVES[name], **settings), logprobs, behavior, advantages, mask, reference, entropy)
