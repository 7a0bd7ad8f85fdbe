"""The named objectives: which term, with which settings, advantage and aggregation; the run file replaces single values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from learner.losses import terms
from learner.losses.advantages import Baseline, Std
from learner.losses.sequences import Sequences
from learner.tables import ObjectiveTable

TokenTerm = Callable[[Tensor, Tensor, Tensor, "Objective", Sequences], terms.Term]


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective, complete. ``term(logprobs, behavior, advantages, objective, sequences)`` gives each token's loss."""

    term: TokenTerm
    advantage_std: Std
    aggregation: str
    advantage_baseline: Baseline = "mean"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    trust: float = 0.2
    weight_cap: float = 2.0
    weight_tokens: int | None = None
    """A sequence's log-weight is scaled by ``weight_tokens`` / its tokens where it has more, so that it does not grow with the length."""
    tau: float = 1e-3
    kl: float = 0.0
    kl_kind: str = "k3"
    kl_in: str = "loss"
    """``reward``: each token's advantage is less by ``kl`` times its divergence, a constant to the gradient."""
    entropy_bonus: float = 0.0
    """Weight of the policy's entropy (nats a token), which the loss is less by (arXiv 1602.01783, section 4)."""
    second_moment: float | None = None
    """Leave out tokens by ``terms.second_moment_mask``; the trainer then computes the whole batch's log-probabilities first."""
    constant_length: int = 1024
    opsm: float | None = None
    """Off-policy sequence mask: a sequence with A < 0 whose mean of log mu - log pi is above it is left out (DeepSeek-V3.2)."""
    penalty: bool = False
    """Whether the term has a part that does not depend on the advantage (weighted by ``tau``)."""

    @property
    def regularises(self) -> bool:
        return self.kl > 0 or self.entropy_bonus > 0 or (self.penalty and self.tau > 0)


def _ppo(logprobs: Tensor, behavior: Tensor, advantages: Tensor, o: Objective, s: Sequences) -> terms.Term:
    return terms.ppo_clip(logprobs, behavior, advantages, o.clip_low, o.clip_high, o.dual_clip)


def _trust_region(logprobs: Tensor, behavior: Tensor, advantages: Tensor, o: Objective, s: Sequences) -> terms.Term:
    return terms.trust_region(logprobs, behavior, advantages, o.trust, o.weight_cap, o.tau)


def _tapered(logprobs: Tensor, behavior: Tensor, advantages: Tensor, o: Objective, s: Sequences) -> terms.Term:
    return terms.tapered(logprobs, behavior, advantages)


def _capped(logprobs: Tensor, behavior: Tensor, advantages: Tensor, o: Objective, s: Sequences) -> terms.Term:
    return terms.capped(logprobs, behavior, advantages, o.weight_cap)


def _capped_sequence(logprobs: Tensor, behavior: Tensor, advantages: Tensor, o: Objective, s: Sequences) -> terms.Term:
    log_w = s.sum(terms.log_ratio(logprobs, behavior).detach())
    if o.weight_tokens is not None:
        log_w = log_w * (o.weight_tokens / s.lengths(log_w)).clamp(max=1)
    weight = log_w.clamp(-terms.RATIO_LIMIT, terms.RATIO_LIMIT).exp()
    return terms.capped(logprobs, behavior, advantages, o.weight_cap, weight)


def _banded(logprobs: Tensor, behavior: Tensor, advantages: Tensor, o: Objective, s: Sequences) -> terms.Term:
    return terms.banded(logprobs, behavior, advantages, 1 - o.clip_low, 1 + o.clip_high)


def _sequence_clip(logprobs: Tensor, behavior: Tensor, advantages: Tensor, o: Objective, s: Sequences) -> terms.Term:
    return terms.sequence_clip(s.mean(terms.log_ratio(logprobs, behavior)), advantages, o.clip_low, o.clip_high)


OBJECTIVES: dict[str, Objective] = {
    "grpo": Objective(_ppo, "population", "sequence_mean"),
    "dapo": Objective(_ppo, "population", "token_mean", clip_high=0.28),
    "topr": Objective(_tapered, "sample", "sequence_mean"),
    "async": Objective(_capped_sequence, "population", "token_mean", weight_cap=2.0, weight_tokens=256),
    "drgrpo": Objective(_ppo, "none", "constant"),
    "rloo": Objective(_ppo, "none", "sequence_mean", advantage_baseline="leave_one_out"),
    "reinforce_pp": Objective(_ppo, "batch", "token_mean"),
    "gspo": Objective(_sequence_clip, "population", "sequence_mean", clip_low=3e-4, clip_high=4e-4),
    "cispo": Objective(_capped, "population", "token_mean", weight_cap=5.0),
    "tis": Objective(_capped, "population", "token_mean", weight_cap=2.0),
    "tis_sequence": Objective(_capped_sequence, "population", "token_mean", weight_cap=2.0),
    "icepop": Objective(_banded, "population", "token_mean", clip_low=0.5, clip_high=4.0),
    "m2po": Objective(_capped, "population", "token_mean", weight_cap=10.0, second_moment=0.04),
    "decoupled": Objective(_banded, "batch", "token_mean", clip_low=1.0, clip_high=4.0),
    "dppo": Objective(_trust_region, "none", "token_mean", weight_cap=10.0, penalty=True),
    "r1": Objective(_ppo, "population", "sequence_mean", clip_low=10.0, clip_high=10.0, kl=1e-3),
}
"""``async`` is the default, as it came out of benchmarks/staleness.md: the whole sequence's weight pi / mu, at most 2 (``tis_sequence``). That
is a product over tokens, whose spread grows with their number until most weights are 0 or the cap; so beyond 256 tokens the log-weight is
scaled down to what 256 tokens with the same mean would have (between a sequence's weight and its geometric mean, as GSPO has it).

``r1`` has the published settings of DeepSeek-R1 (arXiv 2501.12948, section 2: eps 10, beta .001; G 16, lr 3e-6, the reference refreshed
every 400 steps stand in the run file). Its danger: at eps 10 the clip has no lower bound that works, and a negative advantage is
never clipped, so a token that the policy has left (w far from 1) gets an unbounded gradient. Use it with fresh data
(``max_lag = 0`` or 1), or with ``dual_clip``.

``m2po`` masks only tokens that move away from mu; a negative advantage at a huge w, which it keeps, is capped here at 10.

``decoupled`` (arXiv 2505.24298) bounds pi / prox, prox the policy before the batch, and weighs it with prox / mu, left out above 5. A
manifest is one step, so prox is the policy that is differentiated: pi / prox is 1, and what is left is that weight."""


def objective_of(table: ObjectiveTable) -> Objective:
    """The objective that a run file names, with its values in place of the defaults."""
    given: dict[str, Any] = {
        name: value
        for name, value in table.model_dump(exclude={"name", "ref_refresh"}).items()
        if value is not None and name in Objective.__slots__
    }
    return replace(OBJECTIVES[table.name], **given)
