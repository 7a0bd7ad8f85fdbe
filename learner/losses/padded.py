"""The losses of padded batches (see ``learner.losses``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learner.losses.aggregate import AGGREGATIONS
from learner.losses.objectives import OBJECTIVES, Objective
from learner.losses.tally import Tally
from learner.losses.tokens import TokenBatch, kept_tokens, token_losses

Result = tuple[Tensor, dict[str, float]]


def batch_loss(
    objective: Objective,
    logprobs_NT: Tensor,
    behavior_logprobs_NT: Tensor,
    advantages_N: Tensor,
    mask_NT: Tensor,
    ref_logprobs_NT: Tensor | None = None,
    entropy_NT: Tensor | None = None,
    prox_logprobs_NT: Tensor | None = None,
    teacher_logprobs_NT: Tensor | None = None,
) -> Result:
    """The loss of ``objective`` (a scalar) and its metrics. Raises ValueError if the shapes do not agree."""
    shapes = {
        "logprobs": logprobs_NT, "behaviour": behavior_logprobs_NT, "mask": mask_NT, "advantages": advantages_N,
        "reference": ref_logprobs_NT, "entropy": entropy_NT, "prox": prox_logprobs_NT, "teacher": teacher_logprobs_NT,
    }  # fmt: skip
    told = {name: tuple(tensor.shape) for name, tensor in shapes.items() if tensor is not None}
    wanted = {name: mask_NT.shape[:1] if name == "advantages" else mask_NT.shape for name in told}
    if told != wanted or mask_NT.ndim != 2:
        raise ValueError("shapes differ: " + ", ".join(f"{name} {shape}" for name, shape in told.items()))
    mask = mask_NT.bool()
    advantages_NT = advantages_N[:, None].expand_as(logprobs_NT)
    tokens = token_losses(
        objective,
        TokenBatch(
            logprobs_NT,
            behavior_logprobs_NT,
            advantages_NT,
            mask,
            prox=prox_logprobs_NT,
            reference=ref_logprobs_NT,
            teacher=teacher_logprobs_NT,
            entropy=entropy_NT,
            kept=kept_tokens(objective, logprobs_NT, behavior_logprobs_NT, advantages_NT, mask),
        ),
    )
    weight_N = AGGREGATIONS[objective.aggregation](mask.sum(1).to(tokens.loss.dtype), objective.constant_length)
    tally = Tally()
    tally.add(tokens, torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask))
    return (tokens.loss * weight_N[:, None]).sum(), tally.result()


def grpo(
    logprobs_NT: Tensor, behavior_logprobs_NT: Tensor, advantages_N: Tensor, mask_NT: Tensor, **settings: Any
) -> Result:
    """GRPO with PPO clipping of pi/mu (arXiv 2402.03300 eq. 3).

    ``settings`` replace options of the objective and its term; with ``kl`` > 0 also ``ref_logprobs_NT``, of the reference policy, and with
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
    """The default for asynchronous training: the token's own importance weight times that of the rest of its sequence, tempered.

    ``settings`` as for ``grpo``.
    """
    return _named("async", logprobs_NT, behavior_logprobs_NT, advantages_N, mask_NT, settings)


def _named(
    name: str, logprobs: Tensor, behavior: Tensor, advantages: Tensor, mask: Tensor, settings: dict[str, Any]
) -> Result:
    given = {key: settings.pop(key) for key in ("ref_logprobs_NT", "entropy_NT", "prox_logprobs_NT") if key in settings}
    return batch_loss(OBJECTIVES[name].having(settings, name), logprobs, behavior, advantages, mask, **given)
