"""The named objectives: which term, with which settings, advantage and aggregation; the run file replaces single values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from learner.advantages import Baseline, Std
from learner.config import ObjectiveTable
from learner.losses import terms

TokenTerm = Callable[[Tensor, Tensor, Tensor, "Objective"], terms.Term]


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective, complete. ``term(logprobs, behavior, advantages, objective)`` gives each token's loss."""

    term: TokenTerm
    advantage_std: Std
    aggregation: str
    advantage_baseline: Baseline = "mean"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    trust: float = 0.2
    weight_cap: float = 2.0
    tau: float = 1e-3
    kl: float = 0.0
    constant_length: int = 1024
    penalty: bool = False
    """Whether the term has a part that does not depend on the advantage (weighted by ``tau``)."""

    @property
    def regularises(self) -> bool:
        return self.kl > 0 or (self.penalty and self.tau > 0)


def _ppo(logprobs: Tensor, behavior: Tensor, advantages: Tensor, o: Objective) -> terms.Term:
    return terms.ppo_clip(logprobs, behavior, advantages, o.clip_low, o.clip_high, o.dual_clip)


def _trust_region(logprobs: Tensor, behavior: Tensor, advantages: Tensor, o: Objective) -> terms.Term:
    return terms.trust_region(logprobs, behavior, advantages, o.trust, o.weight_cap, o.tau)


def _tapered(logprobs: Tensor, behavior: Tensor, advantages: Tensor, o: Objective) -> terms.Term:
    return terms.tapered(logprobs, behavior, advantages)


OBJECTIVES: dict[str, Objective] = {
    "grpo": Objective(_ppo, "population", "sequence_mean"),
    "dapo": Objective(_ppo, "population", "token_mean", clip_high=0.28),
    "topr": Objective(_tapered, "sample", "sequence_mean"),
    "async": Objective(_trust_region, "none", "token_mean", penalty=True),
}


def objective_of(table: ObjectiveTable) -> Objective:
    """The objective that a run file names, with its values in place of the defaults."""
    given: dict[str, Any] = {
        name: value
        for name, value in table.model_dump(exclude={"name", "ref_refresh"}).items()
        if value is not None and name in Objective.__slots__
    }
    return replace(OBJECTIVES[table.name], **given)
