"""The objectives' terms: pure functions of one token's numbers, of any shape; tensors in, tensors out.

Notation (docs of each give the source): pi current policy, mu behaviour policy, ``w = pi / mu``, A advantage, sg stop-gradient.
All take clean inputs (see ``guard``): finite where they count, zero elsewhere. Losses are minimised.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

RATIO_LIMIT = 60.0  # |log w| beyond this is cut: exp(60) is still far from float32's end
KL_LIMIT, KL_VALUE_LIMIT = 20.0, 10.0


@dataclass(frozen=True, slots=True)
class Term:
    """``loss`` of each token; ``weight``, what its advantage's gradient is multiplied by after every clip, cap and mask; and
    ``flags``: which tokens something was done to (clipped, capped), by name."""

    loss: Tensor
    weight: Tensor
    flags: dict[str, Tensor] = field(default_factory=dict)


def log_ratio(logprobs: Tensor, behavior: Tensor) -> Tensor:
    """``log pi - log mu``, cut to +-60."""
    return (logprobs - behavior).clamp(-RATIO_LIMIT, RATIO_LIMIT)


def ppo_clip(
    logprobs: Tensor, behavior: Tensor, advantages: Tensor, low: float, high: float, dual: float | None = None
) -> Term:
    """``max(-A w, -A clip(w, 1 - low, 1 + high))`` (PPO, arXiv 1707.06347 eq. 7; GRPO, arXiv 2402.03300 eq. 3).

    ``dual`` c: for A < 0 at most ``-c A`` (dual clip, arXiv 1912.09729). At the extremes: A > 0 gives no gradient above
    ``1 + high``; A < 0 none below ``1 - low``, and without ``dual`` an unbounded one above.
    """
    ratio = log_ratio(logprobs, behavior).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high)
    loss = torch.maximum(plain, clipped)
    flags = {"clip_high": (advantages > 0) & (ratio > 1 + high), "clip_low": (advantages < 0) & (ratio < 1 - low)}
    if dual is not None:
        bound = -dual * advantages
        flags["clip_dual"] = (advantages < 0) & (loss > bound)
        loss = torch.where(advantages < 0, torch.minimum(loss, bound), loss)
    silent = torch.stack(list(flags.values())).any(0)
    return Term(loss, torch.where(silent, 0.0, ratio.detach()), flags)


def trust_region(logprobs: Tensor, behavior: Tensor, advantages: Tensor, trust: float, cap: float, tau: float) -> Term:
    """``-K sg[min(w, C)] A log pi + tau (log w)^2``: each token by itself, in a trust region of probabilities.

    K leaves out a token that moved further than ``trust`` in probability already in the direction that its advantage
    pushes (A > 0 and pi - mu > d, or A < 0 and pi - mu < -d: DPPO's mask). C caps the importance weight (truncated
    importance sampling), so the gradient is bounded at any ratio. The square pulls pi back to mu.
    """
    log_w = log_ratio(logprobs, behavior)
    with torch.no_grad():
        moved = logprobs.exp() - behavior.exp()
        high, low = (advantages > 0) & (moved > trust), (advantages < 0) & (moved < -trust)
        ratio = log_w.exp()
        weight = torch.where(high | low, 0.0, ratio.clamp(max=cap))
    loss = -weight * advantages * logprobs + tau * log_w.square()
    return Term(loss, weight, {"clip_high": high, "clip_low": low, "capped": ratio > cap})


def tapered(logprobs: Tensor, behavior: Tensor, advantages: Tensor) -> Term:
    """TOPR (arXiv 2503.14286 eq. 8): ``-A log pi`` for A > 0, else ``-sg[clip(w, 0, 1)] A log pi``; always bounded."""
    with torch.no_grad():
        ratio = log_ratio(logprobs, behavior).exp()
        weight = torch.where(advantages > 0, 1.0, ratio.clamp(max=1.0))
    return Term(-weight * advantages * logprobs, weight, {"capped": (advantages < 0) & (ratio > 1)})


def capped(logprobs: Tensor, behavior: Tensor, advantages: Tensor, cap: float, weight: Tensor | None = None) -> Term:
    """``-sg[min(w, C)] A log pi``: truncated importance sampling (arXiv 2505.24034); CISPO (arXiv 2506.13585 eq. 4) with C = 1 + h.

    ``weight`` stands for w where it is that of the whole sequence. Every token keeps a gradient, and none is above C.
    """
    with torch.no_grad():
        ratio = log_ratio(logprobs, behavior).exp() if weight is None else weight
        kept = ratio.clamp(max=cap)
    return Term(-kept * advantages * logprobs, kept, {"capped": ratio > cap})


def banded(logprobs: Tensor, behavior: Tensor, advantages: Tensor, low: float, high: float) -> Term:
    """``-sg[w] A log pi`` where ``low <= w <= high``, else nothing (masked importance sampling; IcePop, 2025)."""
    with torch.no_grad():
        ratio = log_ratio(logprobs, behavior).exp()
        above, below = ratio > high, ratio < low
        weight = torch.where(above | below, 0.0, ratio)
    return Term(-weight * advantages * logprobs, weight, {"clip_high": above, "clip_low": below})


def sequence_clip(log_s: Tensor, advantages: Tensor, low: float, high: float) -> Term:
    """GSPO (arXiv 2507.18071 eq. 5): PPO's clip of ``s = exp(mean over the sequence of log w)``, the same for all its tokens.

    ``log_s`` is differentiable and holds each token's sequence's mean. A sequence is on or off as a whole.
    """
    ratio = log_s.clamp(-RATIO_LIMIT, RATIO_LIMIT).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))
    up, down = (advantages > 0) & (ratio > 1 + high), (advantages < 0) & (ratio < 1 - low)
    return Term(loss, torch.where(up | down, 0.0, ratio.detach()), {"clip_high": up, "clip_low": down})


def second_moment_mask(log_w: Tensor, advantages: Tensor, used: Tensor, limit: float) -> Tensor:
    """The tokens that M2PO keeps (arXiv 2510.01161), bool; over the whole batch, all arguments of one shape.

    Of the ``used`` tokens whose update moves pi further from mu (A > 0 and w > 1, A < 0 and w < 1) those with the largest
    ``(log w)^2`` are left out until the mean of the others' is at most ``limit``. NaN where not ``used`` does no harm.
    """
    away = used & (((advantages > 0) & (log_w > 0)) | ((advantages < 0) & (log_w < 0)))
    squares, order = log_w[away].double().square().sort(descending=True, stable=True)
    count = torch.arange(len(squares), 0, -1, device=log_w.device)
    dropped = int((squares.flip(0).cumsum(0).flip(0) / count > limit).sum())  # the means only fall
    kept = torch.ones(len(squares), dtype=torch.bool, device=log_w.device)
    kept[order[:dropped]] = False
    return torch.ones_like(used).masked_scatter(away, kept)


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """``log pi - log ref`` cut to +-20: KL(pi || ref) in the mean, without its gradient; it belongs into the reward."""
    return (logprobs - reference).clamp(-KL_LIMIT, KL_LIMIT)


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """``(log pi - log ref)^2 / 2`` with the difference cut to +-20: in the mean its gradient is that of KL(pi || ref)."""
    return k1(logprobs, reference).square() / 2


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """``e^q - q - 1`` with ``q = log ref - log pi`` cut to +-20 and the value to 10 (J. Schulman, 2020): KL(pi || ref) >= 0."""
    q = (reference - logprobs).clamp(-KL_LIMIT, KL_LIMIT)
    return (q.exp() - q - 1).clamp(max=KL_VALUE_LIMIT)
