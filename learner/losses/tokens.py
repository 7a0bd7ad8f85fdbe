"""The loss of each token, of any shape: what the public losses and the trainer share.

Nothing is summed over tokens here; the weight of each comes from ``aggregate`` with the denominators of the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.losses.guard import clean
from learner.losses.objectives import Objective
from learner.losses.terms import Term, k3


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """``loss`` of each token (0 where not ``used``), and what it was made of; all of one shape but ``invalid``, a count.

    ``used``: the trained tokens whose numbers are all finite. ``divergence``: k3 to the ``reference`` policy, if one counts.
    """

    loss: Tensor
    term: Term
    logprobs: Tensor
    behavior: Tensor
    used: Tensor
    invalid: Tensor
    reference: Tensor | None
    divergence: Tensor | None


def token_losses(
    objective: Objective,
    logprobs: Tensor,
    behavior: Tensor,
    advantages: Tensor,
    mask: Tensor,
    reference: Tensor | None = None,
) -> TokenLoss:
    """Each token's loss under ``objective``; only ``logprobs`` is differentiated. ``reference`` counts where ``kl`` > 0.

    Half-precision inputs are computed in float32. Raises ValueError if the objective needs a reference that is not given.
    """
    inputs = [logprobs, behavior.detach(), advantages.detach()]
    if objective.kl:
        if reference is None:
            raise ValueError(f"kl = {objective.kl} needs the log-probabilities of a reference policy")
        inputs.append(reference.detach())
    tensors, used, invalid = clean(mask, *(t.to(torch.promote_types(t.dtype, torch.float32)) for t in inputs))
    term = objective.term(tensors[0], tensors[1], tensors[2], objective)
    loss, anchor, divergence = term.loss, None, None
    if objective.kl:
        anchor = tensors[3]
        divergence = k3(tensors[0], anchor)
        loss = loss + objective.kl * divergence
    return TokenLoss(torch.where(used, loss, 0.0), term, tensors[0], tensors[1], used, invalid, anchor, divergence)
