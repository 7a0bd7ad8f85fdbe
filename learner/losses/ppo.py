"""Terms whose ratio is differentiated: PPO's clip of each token's ratio, and GSPO's of the sequence's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from learner.losses.term import RATIO_LIMIT, Term, Tokens, above, log_ratio, one_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PpoClip:
    """``max(-A w, -A clip(w, 1 - low, 1 + high))`` (PPO, arXiv 1707.06347 eq. 7; GRPO, arXiv 2402.03300 eq. 3).

    ``dual`` c: for A < 0 at most ``-c A`` (dual clip, arXiv 1912.09729); 0 leaves it out. At the extremes: A > 0 gives no gradient above
    ``1 + high``; A < 0 none below ``1 - low`` and none above c, and without ``dual`` an unbounded one above.
    ``anchor``: what the ratio is taken to, the policy that sampled (``behavior``) or the one before the batch (``prox``).
    """

    low: float = 0.2
    high: float = 0.2
    dual: float = 3.0
    anchor: str = "behavior"

    def __post_init__(self) -> None:
        above(0, low=self.low, high=self.high)
        if self.dual:
            above(1, dual=self.dual)
        one_of(("behavior", "prox"), anchor=self.anchor)

    @property
    def uses_prox(self) -> bool:
        return self.anchor == "prox"

    def __call__(self, tokens: Tokens) -> Term:
        ratio = log_ratio(tokens.logprobs, tokens.prox if self.uses_prox else tokens.behavior).exp()
        return clipped(ratio, tokens.advantages, self.low, self.high, self.dual)


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float, dual: float) -> Term:
    """``PpoClip`` of a given ``ratio``, differentiable."""
    loss = (-advantages * ratio).maximum(-advantages * ratio.clamp(1 - low, 1 + high))
    flags = {"clip_high": (advantages > 0) & (ratio > 1 + high), "clip_low": (advantages < 0) & (ratio < 1 - low)}
    if dual:
        bound = -dual * advantages
        flags["clip_dual"] = (advantages < 0) & (loss > bound)
        loss = loss.minimum(bound).where(advantages < 0, loss)
    return Term(loss, ratio.detach().masked_fill(reduce(or_, flags.values()), 0.0), flags)


@dataclass(frozen=True, slots=True)
class SequenceClip:
    """GSPO (arXiv 2507.18071 eq. 5): PPO's clip of ``s = exp(mean over the sequence of log w)``, the same for all its tokens.

    A sequence is on or off as a whole.
    """

    low: float = 3e-4
    high: float = 4e-4

    def __post_init__(self) -> None:
        above(0, low=self.low, high=self.high)

    def __call__(self, tokens: Tokens) -> Term:
        log_s = tokens.sequences.mean(log_ratio(tokens.logprobs, tokens.behavior))
        ratio = log_s.clamp(-RATIO_LIMIT, RATIO_LIMIT).exp()
        return clipped(ratio, tokens.advantages, self.low, self.high, 0.0)
