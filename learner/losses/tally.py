"""What a step reports about its tokens: sums that are added up over micro-batches and become means at the end.

Sums are float64 numbers: the square of a ratio of e^60 has no place in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.term import log_ratio
from learner.losses.tokens import TokenLoss

SEQUENCE_LIMIT = 300.0  # |sum of log w| is cut here: the square of its exponential is still finite in float64
MEANS = (
    "importance_ratio_mean", "importance_ratio_capped_mean", "kl_behavior", "k1_behavior", "chi2", "masked_fraction",
    "entropy", "staleness_mean", "kl_reference", "k1_reference", "kl_teacher",
)  # fmt: skip
FLAG_NAMES = {
    "clip_high": "clip_fraction_high",
    "clip_low": "clip_fraction_low",
    "clip_dual": "clip_fraction_dual",
    "capped": "capped_fraction",
}
NOTHING = float("-inf")  # the maximum of no values
SILENCING = ("clip_high", "clip_low", "clip_dual")
"""The flags of a token whose advantage has no gradient."""


class Tally:
    """Adds up statistics of tokens over micro-batches; every sequence is in exactly one of them.

    ``sums`` and ``maxima`` have the same names on all ranks of a pool that have seen a micro-batch, be it without tokens.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.maxima: dict[str, float] = {}

    def add(
        self, tokens: TokenLoss, sequence: Tensor, staleness: Tensor | None = None, entropy: Tensor | None = None
    ) -> None:
        """``sequence`` int64 tells which sequence each token is of; ``staleness`` in versions, ``entropy`` in nats.

        All of the shape of ``tokens``. What is not given is not reported.
        """
        used = tokens.used
        with torch.no_grad():
            log_w = log_ratio(tokens.logprobs, tokens.behavior)[used].double()
            ratio, weight = log_w.exp(), tokens.term.weight[used].double()
            flags = {name: flag[used].double() for name, flag in tokens.term.flags.items()}
            silent = torch.stack([flags.get(name, torch.zeros_like(ratio)) for name in SILENCING]).amax(0)
            sums = {
                "tokens": torch.ones_like(ratio),
                "tokens_invalid": tokens.invalid.double(),
                "importance_ratio_mean": ratio,
                "importance_ratio_capped_mean": weight,
                "ratio_square": ratio.square(),
                "kl_behavior": ratio - 1 - log_w,
                "k1_behavior": -log_w,
                "chi2": (ratio - 1).square(),
                "masked_fraction": silent,
                **{f"flag/{name}": flag for name, flag in flags.items()},
            }
            high = {"importance_ratio_max": ratio, "importance_ratio_capped_max": weight}
            if entropy is not None:
                sums["entropy"] = entropy[used].double()
            if tokens.divergence is not None and tokens.reference is not None:
                sums["kl_reference"] = tokens.divergence[used].double()
                sums["k1_reference"] = (tokens.logprobs - tokens.reference)[used].double()
            if tokens.distance is not None:
                sums["kl_teacher"] = tokens.distance[used].double()
            if staleness is not None:
                lag = high["staleness_max"] = staleness[used].double()
                sums |= {"staleness_mean": lag, "fresh": (lag == 0).double()}
                sums["mismatch"] = torch.where(lag == 0, log_w.abs(), 0.0)
            sums |= _sequence_sums(sequence[used], log_w, silent)
            self._add({name: values.sum() for name, values in sums.items()})
            for name, values in high.items():
                most = float(values.max()) if values.numel() else NOTHING
                self.maxima[name] = max(self.maxima.get(name, NOTHING), most)

    def _add(self, sums: dict[str, Tensor]) -> None:
        """One transfer from the device for all of them."""
        for name, value in zip(sums, torch.stack(list(sums.values())).tolist(), strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value

    def result(self) -> dict[str, float]:
        """Means over tokens, shares, and maxima."""
        sums, tokens = self.sums, self.sums.get("tokens", 0.0)
        out = {"tokens_trained": tokens, "tokens_invalid": sums.get("tokens_invalid", 0.0)}
        out |= {name: value for name, value in self.maxima.items() if value > NOTHING}
        if not tokens:
            return out
        out |= {name: sums[name] / tokens for name in MEANS if name in sums}
        for name, value in sums.items():
            if name.startswith("flag/"):
                out[FLAG_NAMES[name.removeprefix("flag/")]] = value / tokens
        if sums.get("fresh"):
            out["mismatch"] = sums["mismatch"] / sums["fresh"]
        out["ess_ratio"] = sums["importance_ratio_mean"] ** 2 / (tokens * sums["ratio_square"])
        out["ess_ratio_sequence"] = sums["sequence_ratio"] ** 2 / (sums["sequences"] * sums["sequence_ratio_square"])
        out["masked_sequence_fraction"] = sums["sequences_masked"] / sums["sequences"]
        return out


def _sequence_sums(sequence_M: Tensor, log_w_M: Tensor, silent_M: Tensor) -> dict[str, Tensor]:
    """Of each sequence with a token here: the product of its ratios, and whether all its tokens are silent."""
    _, index_M = sequence_M.unique(return_inverse=True)
    zeros_S = log_w_M.new_zeros(int(index_M.max()) + 1 if index_M.numel() else 0)
    ratio_S = zeros_S.index_add(0, index_M, log_w_M).clamp(-SEQUENCE_LIMIT, SEQUENCE_LIMIT).exp()
    heard_S = zeros_S.index_add(0, index_M, 1 - silent_M)
    return {
        "sequences": torch.ones_like(zeros_S),
        "sequence_ratio": ratio_S,
        "sequence_ratio_square": ratio_S.square(),
        "sequences_masked": (heard_S == 0).double(),
    }
