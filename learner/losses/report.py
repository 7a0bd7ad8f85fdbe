"""What a step reports of its tokens: sums that add over micro-batches, and become means at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.terms import Term, log_ratio


class Tally:
    """Adds up tokens' statistics. All inputs are flat, of the tokens that count."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._max: dict[str, float] = {}

    def add(
        self, term: Term, logprobs: Tensor, behavior: Tensor, staleness: Tensor, entropy: Tensor, used: Tensor
    ) -> None:
        """``staleness`` in versions; ``used`` are the tokens that count of all that were given."""
        with torch.no_grad():
            log_w = log_ratio(logprobs, behavior)[used]
            ratio = log_w.exp()
            fresh = (staleness == 0)[used]
            sums = {
                "tokens": torch.ones_like(log_w),
                "importance_ratio_mean": ratio,
                "ratio_square": ratio.square(),
                "kl_behavior": ratio - 1 - log_w,
                "k1_behavior": -log_w,
                "chi2": (ratio - 1).square(),
                "entropy": entropy[used],
                "staleness_mean": staleness[used].float(),
                "fresh": fresh.float(),
                "mismatch": torch.where(fresh, log_w.abs(), 0.0),
            }
            flags = {f"flag/{name}": flag[used].float() for name, flag in term.flags.items()}
            for name, values in {**sums, **flags}.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(values.sum(dtype=torch.float64))
            if ratio.numel():
                self._raise("importance_ratio_max", float(ratio.max()))
                self._raise("staleness_max", float(staleness[used].max()))

    def count(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value

    def _raise(self, name: str, value: float) -> None:
        self._max[name] = max(self._max.get(name, value), value)

    def result(self) -> dict[str, float]:
        """Means over tokens, shares, and maxima."""
        tokens = self._sums.get("tokens", 0.0)
        out = {"tokens_trained": tokens, "tokens_invalid": self._sums.get("tokens_invalid", 0.0), **self._max}
        if not tokens:
            return out
        for name in ("importance_ratio_mean", "kl_behavior", "k1_behavior", "chi2", "entropy", "staleness_mean"):
            out[name] = self._sums[name] / tokens
        for name, value in self._sums.items():
            if name.startswith("flag/"):
                out[FLAG_NAMES.get(name.removeprefix("flag/"), name.removeprefix("flag/"))] = value / tokens
        if "kl_reference" in self._sums:
            out["kl_reference"] = self._sums["kl_reference"] / tokens
        if self._sums["fresh"]:
            out["mismatch"] = self._sums["mismatch"] / self._sums["fresh"]
        out["ess_ratio"] = (self._sums["importance_ratio_mean"] ** 2) / (
            tokens * max(self._sums["ratio_square"], 1e-300)
        )
        return out


FLAG_NAMES = {
    "clip_high": "clip_fraction_high",
    "clip_low": "clip_fraction_low",
    "clip_dual": "clip_fraction_dual",
    "capped": "capped_fraction",
}
