"""The loss of each token, of any shape: what the public losses and the trainer share.

Nothing is summed over tokens here; the weight of each comes from ``aggregate`` with the denominators of the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.losses.guard import clean
from learner.losses.objectives import Objective
from learner.losses.sequences import Sequences
from learner.losses.terms import Term, k3, log_ratio


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
    sequence: Tensor | None = None,
) -> TokenLoss:
    """Each token's loss under ``objective``; only ``logprobs`` is differentiated. ``reference`` counts where ``kl`` > 0.

    ``sequence`` int64 tells which sequence each token is of; without it they are the rows.
    Half-precision inputs are computed in float32. Raises ValueError if the objective needs a reference that is not given.
    """
    inputs = [logprobs, behavior.detach(), advantages.detach()]
    if objective.kl:
        if reference is None:
            raise ValueError(f"kl = {objective.kl} needs the log-probabilities of a reference policy")
        inputs.append(reference.detach())
    tensors, used, invalid = clean(mask, *(t.to(torch.promote_types(t.dtype, torch.float32)) for t in inputs))
    index = (
        torch.arange(len(mask), device=mask.device).view(-1, *[1] * (mask.ndim - 1)) if sequence is None else sequence
    )
    sequences = Sequences(index.expand_as(mask), used)
    term = objective.term(tensors[0], tensors[1], tensors[2], objective, sequences)
    if objective.opsm is not None:
        term = _without_stale_negatives(term, tensors[0], tensors[1], tensors[2], sequences, objective.opsm)
    loss, anchor, divergence = term.loss, None, None
    if objective.kl:
        anchor = tensors[3]
        divergence = k3(tensors[0], anchor)
        loss = loss + objective.kl * divergence
    return TokenLoss(torch.where(used, loss, 0.0), term, tensors[0], tensors[1], used, invalid, anchor, divergence)


def _without_stale_negatives(
    term: Term, logprobs: Tensor, behavior: Tensor, advantages: Tensor, sequences: Sequences, limit: float
) -> Term:
    """Leave out the sequences with A < 0 that the policy has moved away from (see ``Objective.opsm``)."""
    with torch.no_grad():
        gone = (advantages < 0) & (sequences.mean(-log_ratio(logprobs, behavior)) > limit)
    flags = {**term.flags, "clip_low": term.flags.get("clip_low", torch.zeros_like(gone)) | gone}
    return Term(torch.where(gone, 0.0, term.loss), torch.where(gone, 0.0, term.weight), flags)
