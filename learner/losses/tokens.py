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
from learner.losses.terms import Term, k1, k2, k3, log_ratio, second_moment_mask

DIVERGENCES = {"k1": k1, "k2": k2, "k3": k3}


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """``loss`` of each token (0 where not ``used``), and what it was made of; all of one shape but ``invalid``, a count.

    ``used``: the trained tokens whose numbers are all finite. ``divergence``: to the ``reference`` policy, if one counts.
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
    kept: Tensor | None = None,
    entropy: Tensor | None = None,
) -> TokenLoss:
    """Each token's loss under ``objective``; only ``logprobs`` and ``entropy`` are differentiated.

    ``reference`` counts where ``kl`` > 0, ``entropy`` where ``entropy_bonus`` > 0.

    ``kept`` bool are the tokens that take part (``kept_tokens`` of the whole batch); the others' loss is 0.
    ``sequence`` int64 tells which sequence each token is of; without it they are the rows.
    Half-precision inputs are computed in float32. Raises ValueError if the objective needs a reference or an entropy
    that is not given.
    """
    inputs = [logprobs, behavior.detach(), advantages.detach()]
    if objective.kl:
        if reference is None:
            raise ValueError(f"kl = {objective.kl} needs the log-probabilities of a reference policy")
        inputs.append(reference.detach())
    if objective.entropy_bonus:
        if entropy is None:
            raise ValueError(f"entropy_bonus = {objective.entropy_bonus} needs the entropy of the policy")
        inputs.append(entropy)
    tensors, used, invalid = clean(mask, *(t.to(torch.promote_types(t.dtype, torch.float32)) for t in inputs))
    index = (
        torch.arange(len(mask), device=mask.device).view(-1, *[1] * (mask.ndim - 1)) if sequence is None else sequence
    )
    sequences = Sequences(index.expand_as(mask), used)
    current, sampled, pushed = tensors[:3]
    anchor = tensors[3] if objective.kl else None
    divergence = None if anchor is None else DIVERGENCES[objective.kl_kind](current, anchor)
    if divergence is not None and objective.kl_in == "reward":
        pushed = pushed - objective.kl * divergence.detach()
    term = objective.term(current, sampled, pushed, objective, sequences)
    if objective.opsm is not None:
        term = _without_stale_negatives(term, current, sampled, pushed, sequences, objective.opsm)
    if kept is not None:
        term = _without(term, ~kept)
    loss = term.loss
    if divergence is not None and objective.kl_in == "loss":
        loss = loss + objective.kl * divergence
    if objective.entropy_bonus:
        loss = loss - objective.entropy_bonus * tensors[-1]
    return TokenLoss(torch.where(used, loss, 0.0), term, current, sampled, used, invalid, anchor, divergence)


def kept_tokens(objective: Objective, logprobs: Tensor, behavior: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Which tokens of a whole batch take part, bool: all, or those that ``second_moment`` keeps. Tensors of any one shape."""
    if objective.second_moment is None:
        return torch.ones_like(mask)
    tensors, used, _ = clean(mask, logprobs.detach().double(), behavior.double(), advantages.double())
    return second_moment_mask(log_ratio(tensors[0], tensors[1]), tensors[2], used, objective.second_moment)


def _without(term: Term, gone: Tensor) -> Term:
    flags = {**term.flags, "clip_low": term.flags.get("clip_low", torch.zeros_like(gone)) | gone}
    return Term(torch.where(gone, 0.0, term.loss), torch.where(gone, 0.0, term.weight), flags)


def _without_stale_negatives(
    term: Term, logprobs: Tensor, behavior: Tensor, advantages: Tensor, sequences: Sequences, limit: float
) -> Term:
    """Leave out the sequences with A < 0 that the policy has moved away from (see ``Objective.opsm``)."""
    with torch.no_grad():
        gone = (advantages < 0) & (sequences.mean(-log_ratio(logprobs, behavior)) > limit)
    return _without(term, gone)
