"""Three policies: PPO's clip against the policy before the batch, and a weight for the way from the one that sampled to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from learner.losses.ppo import clipped
from learner.losses.term import Term, Tokens, above, at_least, log_ratio, one_of


@dataclass(frozen=True, slots=True)
class Decoupled:
    """``sg[K(rho)] max(-A r, -A clip(r, 1 - low, 1 + high))`` with ``r = pi / prox``, ``rho = prox / mu``, and ``dual`` as in ``PpoClip``.

    Decoupled PPO (arXiv 2110.00641 eq. 6; AReaL, arXiv 2505.24298 eq. 5). K leaves out what lies outside ``least <= rho <= most``
    (``outside = "mask"``: AReaL's cap, IcePop's band) or cuts rho to that band (``"cap"``: truncated importance sampling). ``level``: rho of
    each token, or the product over its ``sequence``. Where a batch is one optimizer step, r is 1 and the gradient is that of ``-sg[K(rho)] A log pi``.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float = 3.0
    least: float = 0.0
    most: float = 5.0
    outside: str = "mask"
    level: str = "token"

    uses_prox: ClassVar[bool] = True
    renamed: ClassVar[Mapping[str, str]] = {
        "clip_low": "use low for the clip of pi / prox, least for the lowest weight prox / mu",
        "clip_high": "use high for the clip of pi / prox, most for the largest weight prox / mu",
    }

    def __post_init__(self) -> None:
        above(0, low=self.low, high=self.high)
        if self.dual:
            above(1, dual=self.dual)
        at_least(0, least=self.least)
        above(self.least, most=self.most)
        one_of(("mask", "cap"), outside=self.outside)
        one_of(("token", "sequence"), level=self.level)

    def __call__(self, tokens: Tokens) -> Term:
        ppo = clipped(log_ratio(tokens.logprobs, tokens.prox).exp(), tokens.advantages, self.low, self.high, self.dual)
        log_rho = log_ratio(tokens.prox, tokens.behavior).detach()
        if self.level == "sequence":
            log_rho = log_ratio(tokens.sequences.sum(log_rho), log_rho.new_zeros(()))
        rho = log_rho.exp()
        over, under = rho > self.most, rho < self.least
        if self.outside == "cap":
            weight, flags = rho.clamp(self.least, self.most), {**ppo.flags, "capped": over | under}
        else:
            weight = rho.masked_fill(over | under, 0.0)
            flags = {
                **ppo.flags,
                "clip_high": ppo.flags["clip_high"] | over,
                "clip_low": ppo.flags["clip_low"] | under,
            }
        return Term(weight * ppo.loss, weight * ppo.weight, flags)
