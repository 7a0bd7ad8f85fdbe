"""The named objectives, each with its term, its options, its advantage and its aggregation. Imports no torch.

A run file names one and replaces single options of it, or brings a term of its own (``learner.losses.table``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from broker.spelling import nearest
from learner.losses.decoupled import Decoupled
from learner.losses.ppo import PpoClip, SequenceClip
from learner.losses.term import TermOf, above, at_least, one_of
from learner.losses.trust import Trust
from learner.losses.weighted import Banded, Capped, CappedSequence, Tapered, Tempered

Std = Literal["population", "sample", "batch", "none"]
Baseline = Literal["mean", "leave_one_out"]
Aggregation = Literal["sequence_mean", "token_mean", "constant"]
OLD_NAMES = {
    "clip_low": "low",
    "clip_high": "high",
    "dual_clip": "dual",
    "weight_cap": "cap",
    "weight_tokens": "tokens",
}
"""Options of terms under the names that they had in version 0.1; they still work."""
ONLY_WITH = {"kl_kind": "kl", "kl_in": "kl", "ref_refresh": "kl"}
"""Options that are read only where another one is above 0."""


@dataclass(frozen=True, slots=True)
class Objective:
    """One complete objective: a term, and the settings that all terms share.

    ``advantage_baseline``: what a reward is compared with, the mean of its group or of the others in it (RLOO, usually without std).
    ``kl``: weight of the divergence to the reference policy, which is refreshed every ``ref_refresh`` steps. ``kl_in`` ``reward``: each
    token's advantage is less by ``kl`` times its divergence, a constant to the gradient. ``entropy_bonus``: weight of the policy's entropy
    (nats a token), which the loss is less by (arXiv 1602.01783, section 4). ``second_moment``: leave out the tokens that moved furthest until
    the mean squared log-ratio of the rest is at most this (M2PO: .04; 0: keep all); the trainer then scores the whole batch first.
    ``constant_length``: the length that ``aggregation = "constant"`` divides by. ``opsm``: leave out a sequence with A < 0 whose mean of
    log mu - log pi is above it (off-policy sequence mask of DeepSeek-V3.2; 0: keep all). ``distill``: weight of the reverse divergence to a
    teacher, which each token's advantage is less by (on-policy distillation, arXiv 2306.13649); the teacher's log-probabilities come with a
    rewarder's votes.
    """

    term: TermOf
    advantage_std: Std = "population"
    aggregation: Aggregation = "token_mean"
    advantage_baseline: Baseline = "mean"
    kl: float = 0.0
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    ref_refresh: int = 400
    entropy_bonus: float = 0.0
    second_moment: float = 0.0
    constant_length: int = 1024
    opsm: float = 0.0
    distill: float = 0.0

    def __post_init__(self) -> None:
        one_of(get_args(Std), advantage_std=self.advantage_std)
        one_of(get_args(Baseline), advantage_baseline=self.advantage_baseline)
        one_of(get_args(Aggregation), aggregation=self.aggregation)
        one_of(("k1", "k2", "k3"), kl_kind=self.kl_kind)
        one_of(("loss", "reward"), kl_in=self.kl_in)
        at_least(0, kl=self.kl, entropy_bonus=self.entropy_bonus, second_moment=self.second_moment, opsm=self.opsm)
        at_least(0, distill=self.distill)
        above(0, ref_refresh=self.ref_refresh, constant_length=self.constant_length)
        if self.kl and self.kl_kind == "k1" and self.kl_in == "loss":
            raise ValueError(
                "kl_kind = 'k1' in the loss pulls nowhere (the mean of its gradient is 0): use kl_kind = 'k2' or 'k3', or kl_in = 'reward'"
            )

    @property
    def regularises(self) -> bool:
        """Whether tokens without an advantage have a gradient too."""
        return self.kl > 0 or self.entropy_bonus > 0 or self.distill > 0 or bool(getattr(self.term, "pulls", False))

    @property
    def uses_prox(self) -> bool:
        return bool(getattr(self.term, "uses_prox", False))

    def options(self) -> list[str]:
        """What a run file may set of it."""
        return [*SHARED, *fields_of(self.term)]

    def having(self, options: Mapping[str, Any], name: str = "the objective") -> Objective:
        """This objective with ``options`` in place of its own. Raises ValueError for one that it would never read, or a value it refuses."""
        shared, own = {}, {}
        for option, value in options.items():
            new = OLD_NAMES.get(option, option)
            hints: Mapping[str, str] = getattr(self.term, "renamed", {})
            if option in hints:
                raise ValueError(f"{name} does not read {option}: {hints[option]}")
            if new in fields_of(self.term):
                own[new] = value
            elif option in SHARED:
                shared[option] = value
            else:
                raise ValueError(f"{name} does not read {option!r}{nearest(option, self.options())}")
        term: Any = self.term
        made = replace(self, term=replace(term, **own) if own else term, **shared)
        for option in shared.keys() & ONLY_WITH.keys():
            if not getattr(made, ONLY_WITH[option]):
                raise ValueError(f"{name} reads {option} only where {ONLY_WITH[option]} is above 0")
        if "constant_length" in shared and made.aggregation != "constant":
            raise ValueError(f"{name} reads constant_length only with aggregation = 'constant'")
        return made


SHARED = tuple(field.name for field in dataclasses.fields(Objective) if field.name != "term")


def fields_of(term: Any) -> list[str]:
    """The options of a term."""
    return [field.name for field in dataclasses.fields(term) if field.init] if dataclasses.is_dataclass(term) else []


OBJECTIVES: dict[str, Objective] = {
    "async": Objective(Tempered()),
    "grpo": Objective(PpoClip(), aggregation="sequence_mean"),
    "dapo": Objective(PpoClip(high=0.28)),
    "topr": Objective(Tapered(), "sample", "sequence_mean"),
    "drgrpo": Objective(PpoClip(), "none", "constant"),
    "rloo": Objective(PpoClip(), "none", "sequence_mean", "leave_one_out"),
    "reinforce_pp": Objective(PpoClip(), "batch"),
    "gspo": Objective(SequenceClip(), aggregation="sequence_mean"),
    "cispo": Objective(Capped(cap=5.0)),
    "tis": Objective(Capped(cap=2.0)),
    "tis_sequence": Objective(CappedSequence(cap=2.0)),
    "icepop": Objective(Banded(low=0.5, high=4.0)),
    "dppo": Objective(Trust(), "none"),
    "m2po": Objective(Capped(cap=10.0), second_moment=0.04),
    "decoupled": Objective(Decoupled(), "batch"),
    "tis_prox": Objective(Decoupled(most=2.0, outside="cap")),
    "icepop_prox": Objective(Decoupled(least=0.5)),
    "distill": Objective(Capped(cap=2.0), "none", distill=1.0),
    "r1": Objective(PpoClip(low=10.0, high=10.0, dual=0.0), aggregation="sequence_mean", kl=1e-3),
}
"""``async`` is the default for stale data (benchmarks/staleness.md): the token's own ratio times that of the rest of its sequence, whose spread is
bounded so that the mean weight of an answer does not depend on its length.

``r1`` has the published settings of DeepSeek-R1 (arXiv 2501.12948, section 2: eps 10, beta .001; G 16, lr 3e-6, the reference refreshed
every 400 steps stand in the run file). Its danger: at eps 10 the clip has no lower bound that works, and a negative advantage is
never clipped, so a token that the policy has left (w far from 1) gets an unbounded gradient. Use it with fresh data
(``max_lag = 0`` or 1), or with ``dual``; the other clipped objectives have a dual clip of 3.

``m2po`` masks only tokens that move away from mu; a negative advantage at a huge w, which it keeps, is capped here at 10.

``tis``, ``icepop`` and ``tis_sequence`` weigh by pi / mu; ``decoupled``, ``tis_prox`` and ``icepop_prox`` weigh by prox / mu and clip pi / prox,
which differ from them where ``learner.minibatches`` makes several steps of a batch."""
