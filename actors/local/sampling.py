"""Sampling with the log-probability of the distribution that was really sampled from (after temperature and top-p)."""

from __future__ import annotations

import torch
from torch import Tensor


def sample(
    logits_BV: Tensor, temperature_B: Tensor | None, top_p_B: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Next tokens int64 ``[B]`` and their behaviour log-probabilities float32 ``[B]``.

    ``temperature_B`` None is 1 for all. Temperature 0 takes the most likely token; its log-probability is that of temperature 1. ``top_p_B`` None keeps the whole
    distribution.
    """
    greedy = None if temperature_B is None else temperature_B == 0
    scaled = (
        logits_BV
        if greedy is None or temperature_B is None
        else logits_BV / torch.where(greedy, 1.0, temperature_B)[:, None]
    )
    logprobs = torch.log_softmax(scaled, -1)
    if top_p_B is not None:
        logprobs = nucleus(logprobs, top_p_B)
    # argmax of p / Exp(1) draws from p (the Gumbel trick in another form) without normalising again
    noise = torch.empty_like(logprobs).exponential_(generator=generator)
    drawn = (logprobs.exp() / noise).argmax(-1)
    if greedy is not None and bool(greedy.any()):
        drawn = torch.where(greedy, logits_BV.argmax(-1), drawn)
    return drawn, logprobs.gather(1, drawn[:, None])[:, 0]


def nucleus(logprobs_BV: Tensor, top_p_B: Tensor) -> Tensor:
    """The smallest set of tokens whose probabilities reach ``top_p``, renormalised (arXiv 1904.09751); others -inf."""
    ordered, index = logprobs_BV.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    ordered = ordered.masked_fill(before >= top_p_B[:, None], float("-inf"))
    kept = torch.empty_like(ordered).scatter_(1, index, ordered)
    return kept - kept.logsumexp(-1, keepdim=True)
