"""Terms of the form ``-sg[weight] A log pi``: importance sampling, with the weight of each token capped, banded or tapered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from learner.losses.term import Term, Tokens, above, log_ratio

if TYPE_CHECKING:
    from torch import Tensor


def weighted(tokens: Tokens, weight: Tensor, flags: dict[str, Tensor]) -> Term:
    """``-weight A log pi``; ``weight`` is a constant to the gradient."""
    return Term(-weight * tokens.advantages * tokens.logprobs, weight, flags)


def capped(tokens: Tokens, ratio: Tensor, cap: float) -> Term:
    """Every token keeps a gradient, and none has a weight above ``cap``."""
    return weighted(tokens, ratio.clamp(max=cap), {"capped": ratio > cap})


@dataclass(frozen=True, slots=True)
class Capped:
    """``-sg[min(w, cap)] A log pi``: truncated importance sampling (arXiv 2505.24034); CISPO (arXiv 2506.13585 eq. 4) with cap = 1 + h."""

    cap: float = 2.0

    def __post_init__(self) -> None:
        above(0, cap=self.cap)

    def __call__(self, tokens: Tokens) -> Term:
        return capped(tokens, log_ratio(tokens.logprobs, tokens.behavior).detach().exp(), self.cap)


@dataclass(frozen=True, slots=True)
class CappedSequence:
    """``-sg[min(W, cap)] A log pi`` with ``W`` the product of the sequence's ratios.

    ``tokens``: the log-weight of a longer sequence is scaled by ``tokens`` / its length (0: it is not). Either way the mean weight falls as
    sequences get longer, because most of the product's mass lies above the cap: see ``Tempered``.
    """

    cap: float = 2.0
    tokens: int = 0

    def __post_init__(self) -> None:
        above(0, cap=self.cap)
        above(-1, tokens=self.tokens)

    def __call__(self, tokens: Tokens) -> Term:
        sequences = tokens.sequences
        log_w = sequences.sum(log_ratio(tokens.logprobs, tokens.behavior).detach())
        if self.tokens:
            log_w = log_w * (self.tokens / sequences.lengths(log_w)).clamp(max=1)
        return capped(tokens, exp(log_w), self.cap)


@dataclass(frozen=True, slots=True)
class Tempered:
    """``-sg[min(w, cap) min(C', cap) / m] A log pi``: a token's own ratio ``w``, times that of its context, tempered: mean 1 at any length.

    The exact weight of a token's gradient is the product of all ratios of its sequence, ``w C`` with the context ``C``: the other tokens.
    The log-weight of a context of independent small changes is normal, ``log C ~ N(-k, 2 k)`` with ``k = KL(mu || pi)`` of the context; k3 of
    its tokens, ``sum(w - 1 - log w)``, estimates k without bias. Where the standard deviation ``sqrt(2 k)`` is at most ``spread``, ``C' = C``.
    Beyond, ``C'`` is the log-normal number with the same rank, that standard deviation, and mean 1: ``log C' = a (log C + k) - a^2 k`` with
    ``a = spread / sqrt(2 k)``. ``m`` is the mean that ``min(C', cap)`` has then; dividing by it gives back what the cap takes. The token's own
    ratio is never tempered, so that a token which the policy has left (w near 0) is not pushed further, however long its sequence.
    """

    cap: float = 2.0
    spread: float = 1.0

    renamed: ClassVar[Mapping[str, str]] = {
        "weight_tokens": "use spread, the largest standard deviation of a context's log-weight; or name = 'tis_sequence', which reads weight_tokens"
    }

    def __post_init__(self) -> None:
        above(0, cap=self.cap, spread=self.spread)

    def __call__(self, tokens: Tokens) -> Term:
        log_w = log_ratio(tokens.logprobs, tokens.behavior).detach()
        divergence = log_w.expm1() - log_w
        others = tokens.sequences.sum(log_w) - log_w
        kl = (tokens.sequences.sum(divergence) - divergence).clamp(min=0)
        deviation = (2 * kl).sqrt().clamp(min=1e-6)
        scale = (self.spread / deviation).clamp(max=1)
        own, context = log_w.exp(), exp(scale * others + (scale - scale.square()) * kl)
        kept = context.clamp(max=self.cap) / capped_mean(scale * deviation, self.cap)
        flags = {"capped": (own > self.cap) | (context > self.cap)}
        return weighted(tokens, own.clamp(max=self.cap) * kept, flags)


def capped_mean(deviation: Tensor, cap: float) -> Tensor:
    """The mean of ``min(W, cap)`` for ``log W ~ N(-s^2 / 2, s^2)``; ``s``, the ``deviation``, is above 0."""
    at = math.log(cap) / deviation
    return normal(at - deviation / 2) + cap * normal(-at - deviation / 2)


def normal(value: Tensor) -> Tensor:
    """The distribution function of the standard normal distribution."""
    return (1 + (value / math.sqrt(2)).erf()) / 2


@dataclass(frozen=True, slots=True)
class Banded:
    """``-sg[w] A log pi`` where ``1 - low <= w <= 1 + high``, else nothing (masked importance sampling; IcePop, 2025)."""

    low: float = 0.5
    high: float = 4.0

    def __post_init__(self) -> None:
        above(0, low=self.low, high=self.high)

    def __call__(self, tokens: Tokens) -> Term:
        ratio = log_ratio(tokens.logprobs, tokens.behavior).detach().exp()
        over, under = ratio > 1 + self.high, ratio < 1 - self.low
        return weighted(tokens, ratio.masked_fill(over | under, 0.0), {"clip_high": over, "clip_low": under})


@dataclass(frozen=True, slots=True)
class Tapered:
    """TOPR (arXiv 2503.14286 eq. 8): ``-A log pi`` for A > 0, else ``-sg[clip(w, 0, 1)] A log pi``; always bounded."""

    def __call__(self, tokens: Tokens) -> Term:
        ratio = log_ratio(tokens.logprobs, tokens.behavior).detach().exp()
        weight = ratio.clamp(max=1.0).masked_fill(tokens.advantages > 0, 1.0)
        return weighted(tokens, weight, {"capped": (tokens.advantages < 0) & (ratio > 1)})


def exp(log_w: Tensor) -> Tensor:
    """A sequence's weight, its logarithm cut to +-60."""
    return log_ratio(log_w, log_w.new_zeros(())).exp()
