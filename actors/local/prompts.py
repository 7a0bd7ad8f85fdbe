"""Prompts of the local engine: which of those that wait are computed next, and how."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.engine import Request
from actors.local.cache import Cache
from actors.local.decoder import Decoder
from actors.local.held import Kept
from broker.messages import IntArray

PREFILL_TOKENS = 4096  # of one prefill batch


@dataclass(slots=True)
class Group:
    """A request whose prompt is in the cache ``row`` of the prompt cache, with the samples that have no slot yet. ``known`` of its tokens
    were kept from the turn before."""

    request: Request
    waiting: deque[int]
    row: int
    logits: Tensor
    known: int


def next_batch(queue: deque[Request], version: int, most: int) -> list[Request]:
    """Takes from the head of ``queue`` what may start with ``version``: ``most`` requests, and no more tokens than one pass is to have."""
    batch: list[Request] = []
    skipped: deque[Request] = deque()
    longest = 0
    while queue and len(batch) < most:
        request = queue.popleft()
        if request.min_version > version:
            skipped.append(request)
            continue
        longest = max(longest, len(request.tokens))
        if batch and longest * (len(batch) + 1) > PREFILL_TOKENS:
            queue.appendleft(request)
            break
        batch.append(request)
    queue.extendleft(reversed(skipped))
    return batch


def computed(decoder: Decoder, prompts: Sequence[IntArray], kept: Sequence[Kept]) -> tuple[Cache, Tensor, list[int]]:
    """``prompts`` in rows of a cache of their own, the logits ``[B, V]`` behind each, and how many tokens of each were ``kept``: all of them have a
    beginning that is, or none."""
    starts = [len(k.tokens) for k in kept] or [0] * len(prompts)
    longest = max(len(p) - start for p, start in zip(prompts, starts, strict=True))
    tokens = torch.zeros((len(prompts), longest), dtype=torch.long)
    for i, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
        tokens[i, : len(prompt) - start] = torch.from_numpy(prompt[start:].astype(np.int64))
    cache = decoder.cache(len(prompts), max(starts) + longest)
    for i, known in enumerate(kept):
        known.lay(cache, i)
    begun = torch.tensor(starts, device=decoder.device)
    lengths = torch.tensor([len(p) for p in prompts], device=decoder.device) - begun
    tokens = tokens.to(decoder.device)
    logits = decoder.extend(tokens, begun, lengths, cache) if kept else decoder.prefill(tokens, lengths, cache)
    return cache, logits, starts
