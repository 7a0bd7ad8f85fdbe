"""A trust region of probabilities: DPPO's mask with a capped weight."""

from __future__ import annotations

from dataclasses import dataclass

from learner.losses.term import Term, Tokens, above, at_least, log_ratio


@dataclass(frozen=True, slots=True)
class Trust:
    """``-K sg[min(w, cap)] A log pi + tau (log w)^2``: each token by itself, in a trust region of probabilities.

    K leaves out a token that moved further than ``trust`` in probability already in the direction that its advantage
    pushes (A > 0 and pi - mu > d, or A < 0 and pi - mu < -d: DPPO's mask). ``cap`` bounds the importance weight (truncated
    importance sampling), so the gradient is bounded at any ratio. The square pulls pi back to mu.
    """

    trust: float = 0.2
    cap: float = 10.0
    tau: float = 1e-3

    def __post_init__(self) -> None:
        above(0, trust=self.trust, cap=self.cap)
        at_least(0, tau=self.tau)

    @property
    def pulls(self) -> bool:
        return self.tau > 0

    def __call__(self, tokens: Tokens) -> Term:
        log_w, advantages = log_ratio(tokens.logprobs, tokens.behavior), tokens.advantages
        moved = tokens.logprobs.detach().exp() - tokens.behavior.exp()
        high, low = (advantages > 0) & (moved > self.trust), (advantages < 0) & (moved < -self.trust)
        ratio = log_w.detach().exp()
        weight = ratio.clamp(max=self.cap).masked_fill(high | low, 0.0)
        loss = -weight * advantages * tokens.logprobs + self.tau * log_w.square()
        return Term(loss, weight, {"clip_high": high, "clip_low": low, "capped": ratio > self.cap})
