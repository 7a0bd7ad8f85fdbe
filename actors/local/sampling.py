"""Sampling with the log-probability of the distribution that was really sampled from (after temperature and top-p)."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256
WIDE = 4096  # from this vocabulary on, the cumulative sum is first searched by blocks


def sample(
    logits_BV: Tensor, temperature_B: Tensor | None, top_p_B: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Next tokens int64 ``[B]`` and their behaviour log-probabilities float32 ``[B]``.

    ``temperature_B`` None is 1 for all. Temperature 0 takes the most likely token; its log-probability is that of temperature 1.
    ``top_p_B`` None keeps the whole distribution.
    """
    greedy = None if temperature_B is None else temperature_B == 0
    if temperature_B is not None and greedy is not None:
        scaled = logits_BV / torch.where(greedy, 1.0, temperature_B)[:, None]
    else:
        scaled = logits_BV
    if top_p_B is not None:
        scaled = nucleus(torch.log_softmax(scaled, -1), top_p_B)
    drawn, logprobs = draw(scaled, generator)
    if greedy is not None and bool(greedy.any()):
        drawn = torch.where(greedy, logits_BV.argmax(-1), drawn)
        logprobs = torch.log_softmax(scaled, -1).gather(1, drawn[:, None])[:, 0]
    return drawn, logprobs


def draw(logits_BV: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """A token of each row and its log-probability, by the inverse of the cumulative distribution.

    One random number a row, where noise on every logit would need one a token. The sums over a wide vocabulary are taken by blocks, in
    double precision above them, so that rounding moves no probability to other tokens.
    """
    uniform = torch.rand((len(logits_BV), 1), generator=generator, device=logits_BV.device, dtype=torch.float64)
    if logits_BV.shape[1] < WIDE:
        logprobs = torch.log_softmax(logits_BV, -1)
        drawn = _search(logprobs.exp(), uniform)
        return drawn[:, 0], logprobs.gather(1, drawn)[:, 0]
    highest = logits_BV.amax(-1, keepdim=True)
    drawn, total = _search_blocks((logits_BV - highest).exp_(), uniform)
    logprobs = logits_BV.gather(1, drawn) - highest - total.log().float()
    return drawn[:, 0], logprobs[:, 0]


def _search(weights: Tensor, uniform: Tensor) -> Tensor:
    """The place ``[B, 1]`` at which the cumulative sum passes ``uniform`` of its total."""
    sums = weights.cumsum(-1, dtype=torch.float64)
    total = sums[:, -1:]
    # below the total even where the product rounds up: then the sum passes it at a token that has a weight
    return torch.searchsorted(sums, torch.minimum(uniform * total, total * (1 - 1e-12)), right=True)


def _search_blocks(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """As ``_search``, first for the block, then in it; and the total ``[B, 1]`` (float64)."""
    rows, vocabulary = weights.shape
    whole = vocabulary // BLOCK * BLOCK
    blocks = weights[:, :whole].view(rows, -1, BLOCK).sum(-1)
    if whole < vocabulary:
        blocks = torch.cat((blocks, weights[:, whole:].sum(-1, keepdim=True)), 1)
    sums = blocks.cumsum(-1, dtype=torch.float64)
    total = sums[:, -1:]
    wanted = torch.minimum(uniform * total, total * (1 - 1e-12))
    block = torch.searchsorted(sums, wanted, right=True)
    before = sums.gather(1, block) - blocks.gather(1, block)
    places = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(1, places.clamp(max=vocabulary - 1)).masked_fill_(places >= vocabulary, 0)
    inner = inside.cumsum(-1, dtype=torch.float64)
    # the block's sum was rounded otherwise than these
    rest = torch.minimum((wanted - before).clamp_(min=0), inner[:, -1:] * (1 - 1e-12))
    return block * BLOCK + torch.searchsorted(inner, rest, right=True), total


def nucleus(logprobs_BV: Tensor, top_p_B: Tensor) -> Tensor:
    """The smallest set of tokens whose probabilities reach ``top_p``, renormalised (arXiv 1904.09751); others -inf."""
    ordered, index = logprobs_BV.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    ordered = ordered.masked_fill(before >= top_p_B[:, None], float("-inf"))
    kept = torch.empty_like(ordered).scatter_(1, index, ordered)
    return kept - kept.logsumexp(-1, keepdim=True)
