"""The loss of each token, of any shape, shared by the public losses and the trainer.

Nothing is summed over tokens here; the weight of each comes from ``aggregate`` with the denominators of the global batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.losses.divergence import DIVERGENCES, k1
from learner.losses.guard import clean
from learner.losses.objectives import Objective
from learner.losses.second_moment import second_moment_mask
from learner.losses.sequences import Sequences
from learner.losses.term import Term, Tokens, log_ratio


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The inputs of the loss for a number of tokens. All tensors have one shape; only ``logprobs`` and ``entropy`` are differentiated.

    ``mask`` (bool): the trained tokens; the values of the others are ignored. ``sequence`` int64 tells which sequence each token is of; without it they
    are the rows. ``prox``: of the policy before the batch (None: it is the policy that is differentiated). ``reference`` counts where ``kl``
    is above 0, ``teacher`` where ``distill`` is, ``entropy`` where ``entropy_bonus`` is. ``kept`` bool: the tokens that take part
    (``kept_tokens`` of the whole batch); the others' loss is 0.
    """

    logprobs: Tensor
    behavior: Tensor
    advantages: Tensor
    mask: Tensor
    sequence: Tensor | None = None
    prox: Tensor | None = None
    reference: Tensor | None = None
    teacher: Tensor | None = None
    entropy: Tensor | None = None
    kept: Tensor | None = None

    def sequences(self) -> Tensor:
        if self.sequence is not None:
            return self.sequence
        rows = torch.arange(len(self.mask), device=self.mask.device)
        return rows.view(-1, *[1] * (self.mask.ndim - 1)).expand_as(self.mask)


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """``loss`` of each token (0 where not ``used``), and what it was made of; all of one shape but ``invalid``, a count.

    ``used``: the trained tokens whose numbers are all finite. ``divergence``: to the ``reference`` policy, if one counts;
    ``distance``: log pi - log of the teacher, if one counts.
    """

    loss: Tensor
    term: Term
    logprobs: Tensor
    behavior: Tensor
    used: Tensor
    invalid: Tensor
    reference: Tensor | None
    divergence: Tensor | None
    distance: Tensor | None = None


def token_losses(objective: Objective, batch: TokenBatch) -> TokenLoss:
    """Each token's loss under ``objective``. Half-precision inputs are computed in float32.

    Raises ValueError if the objective needs a reference, a teacher or an entropy that is not given.
    """
    given = dict(_inputs(objective, batch))
    exact = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in given.values()]
    tensors, used, invalid = clean(batch.mask, *exact)
    of = dict(zip(given, tensors, strict=True))
    current, advantages = of["logprobs"], of["advantages"]
    sequences = Sequences(batch.sequences(), used)
    divergence = distance = None
    if "reference" in of:
        divergence = DIVERGENCES[objective.kl_kind](current, of["reference"])
        if objective.kl_in == "reward":
            advantages = advantages - objective.kl * divergence.detach()
    if "teacher" in of:
        distance = k1(current.detach(), of["teacher"])
        advantages = advantages - objective.distill * distance
    tokens = Tokens(current, of["behavior"], advantages, of.get("prox", current.detach()), sequences)
    term = objective.term(tokens)
    if objective.opsm:
        term = _without_stale_negatives(term, tokens, objective.opsm)
    if batch.kept is not None:
        term = _without(term, ~batch.kept)
    loss = term.loss
    if divergence is not None and objective.kl_in == "loss":
        loss = loss + objective.kl * divergence
    if objective.entropy_bonus:
        loss = loss - objective.entropy_bonus * of["entropy"]
    loss = torch.where(used, loss, 0.0)
    return TokenLoss(loss, term, current, of["behavior"], used, invalid, of.get("reference"), divergence, distance)


def _inputs(objective: Objective, batch: TokenBatch) -> Iterator[tuple[str, Tensor]]:
    """What the objective reads, by name."""
    yield "logprobs", batch.logprobs
    yield "behavior", batch.behavior.detach()
    yield "advantages", batch.advantages.detach()
    if objective.uses_prox and batch.prox is not None:
        yield "prox", batch.prox.detach()
    if objective.kl:
        if batch.reference is None:
            raise ValueError(f"kl = {objective.kl} needs the log-probabilities of a reference policy")
        yield "reference", batch.reference.detach()
    if objective.distill:
        if batch.teacher is None:
            raise ValueError(f"distill = {objective.distill} needs the log-probabilities of a teacher")
        yield "teacher", batch.teacher.detach()
    if objective.entropy_bonus:
        if batch.entropy is None:
            raise ValueError(f"entropy_bonus = {objective.entropy_bonus} needs the entropy of the policy")
        yield "entropy", batch.entropy


def kept_tokens(objective: Objective, logprobs: Tensor, behavior: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Which tokens of a whole batch take part, bool: all, or those that ``second_moment`` keeps. Tensors of any one shape."""
    if not objective.second_moment:
        return torch.ones_like(mask)
    tensors, used, _ = clean(mask, logprobs.detach().double(), behavior.double(), advantages.double())
    return second_moment_mask(log_ratio(tensors[0], tensors[1]), tensors[2], used, objective.second_moment)


def _without(term: Term, gone: Tensor) -> Term:
    flags = {**term.flags, "clip_low": term.flags.get("clip_low", torch.zeros_like(gone)) | gone}
    return Term(torch.where(gone, 0.0, term.loss), torch.where(gone, 0.0, term.weight), flags)


def _without_stale_negatives(term: Term, tokens: Tokens, limit: float) -> Term:
    """Leave out the sequences with A < 0 that the policy has moved away from (see ``Objective.opsm``)."""
    with torch.no_grad():
        log_w = log_ratio(tokens.logprobs, tokens.behavior)
        gone = (tokens.advantages < 0) & (tokens.sequences.mean(-log_w) > limit)
    return _without(term, gone)
