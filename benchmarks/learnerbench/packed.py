"""Packed chunks against padded micro-batches, and how full the chunks of a large step are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from learner.losses import batch_loss
from learner.losses.aggregate import AGGREGATIONS
from learner.losses.objectives import OBJECTIVES
from learner.losses.tokens import TokenBatch, token_losses
from learner.training.logprobs import score
from learner.training.packing import Sequenced, assign, pack

from . import cases
from .measuring import cpu_medians

COUNT, TOKENS, MICRO, PROMPT, CHUNK = 32, 8800, 8, 16, 1024
STEP_GROUPS, STEP_SIZE = 32, 16
GRPO = OBJECTIVES["grpo"]


def padded_step(model: Any, items: Sequence[Sequenced], advantages_N: torch.Tensor, micro: int = MICRO) -> float:
    """The usual way: micro-batches padded to their longest, logits of all positions, log_softmax and gather."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for at in range(0, len(items), micro):
        part = items[at : at + micro]
        shape = len(part), max(len(s.tokens) for s in part)
        ids_NT, attend_NT, mask_NT = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        behavior_NT = torch.zeros(shape)
        for row, s in enumerate(part):
            n = len(s.tokens)
            ids_NT[row, :n], attend_NT[row, :n] = torch.from_numpy(s.tokens), 1
            mask_NT[row, :n], behavior_NT[row, :n] = torch.from_numpy(s.mask), torch.from_numpy(s.logprobs)
        logits = model(ids_NT, attention_mask=attend_NT, use_cache=False).logits[:, :-1]
        everything = torch.log_softmax(logits, -1)
        logprobs_NT = everything.gather(2, ids_NT[:, 1:, None])[..., 0]
        with torch.no_grad():
            -(everything.exp() * everything).sum(-1)  # the entropy that the packed way gives too
        loss, _ = batch_loss(
            GRPO, logprobs_NT, behavior_NT[:, 1:], advantages_N[at : at + micro], mask_NT[:, 1:].bool()
        )
        (loss * len(part) / len(items)).backward()
        total += float(loss.detach()) * len(part) / len(items)
    return total


def packed_step(model: Any, items: Sequence[Sequenced], advantages_N: torch.Tensor, size: int = CHUNK) -> float:
    """Packing, forward, GRPO loss and backward, as the trainer does it."""
    model.zero_grad(set_to_none=True)
    weights_N = AGGREGATIONS["sequence_mean"](torch.tensor([float(s.mask[1:].sum()) for s in items]), 1)
    total = 0.0
    for chunk in pack(items, size):
        row_M = torch.tensor(chunk.rows_N)[chunk.sequence_T[chunk.mask_T]]
        scores = score(model, chunk)
        known = TokenBatch(scores.logprobs_M, chunk.behavior_T[chunk.mask_T], advantages_N[row_M], row_M >= 0)
        tokens = token_losses(GRPO, known)
        loss = (tokens.loss * weights_N[row_M]).sum()
        loss.backward()
        total += float(loss.detach())
    return total


def report(times: int, rounds: int) -> None:
    print(
        f"## Packed against padded\n\n{COUNT} sequences, log-normal lengths (sigma 1, another draw a row), Qwen2 of 4 layers, 256 wide, {cases.VOCABULARY:,} tokens of vocabulary; forward and backward of GRPO. Padded: micro-batches of {MICRO} in the order drawn, transformers' sdpa; packed: chunks of {CHUNK:,}. No prompts are shared.\n"
    )
    print("| tokens | padded to | padded: s | packed: s | times as fast |\n|---|---|---|---|---|")
    packed, plain = cases.build(cases.qwen2()), cases.build(cases.qwen2(), "sdpa")
    for seed in range(times):
        rng = np.random.default_rng(seed)
        lengths = cases.long_tailed(rng, COUNT, TOKENS, PROMPT + 8, 2048)
        items = [
            cases.sequence(rng, row, rng.integers(0, cases.VOCABULARY, PROMPT), n - PROMPT, cases.VOCABULARY)
            for row, n in enumerate(lengths.tolist())
        ]
        advantages_N = torch.from_numpy(rng.normal(size=COUNT)).float()
        ways = {
            "padded": lambda items=items, a=advantages_N: padded_step(plain, items, a),
            "packed": lambda items=items, a=advantages_N: packed_step(packed, items, a),
        }
        if abs(ways["padded"]() - ways["packed"]()) > 1e-4:
            raise AssertionError("the two ways give different losses")
        seconds = cpu_medians(ways, rounds)
        padded_to = sum(MICRO * lengths[at : at + MICRO].max() for at in range(0, COUNT, MICRO))
        a, b = seconds["padded"], seconds["packed"]
        print(f"| {lengths.sum():,} | {padded_to:,} | {a:.2f} | {b:.2f} | {a / b:.2f} |", flush=True)
    fill(times)


def fill(times: int) -> None:
    """How full the chunks of a step of 512 samples are."""
    print(
        f"\n### Packing efficiency\n\n{STEP_GROUPS} groups of {STEP_SIZE}: prompts of 100-300 tokens, log-normal answers of 2,000 on average, at most 8,192.\n"
    )
    print(
        "| chunk | draw | chunks | the fewest possible | efficiency | tokens without sharing prompts / computed |\n|---|---|---|---|---|---|"
    )
    for size in (4096, 16_384):
        for seed in range(times):
            rng = np.random.default_rng(seed)
            prompt_G = rng.integers(100, 301, STEP_GROUPS)
            answers = cases.long_tailed(rng, STEP_GROUPS * STEP_SIZE, 2000 * STEP_GROUPS * STEP_SIZE, 2, 8192)
            shared = np.repeat(prompt_G, STEP_SIZE) - 1
            lengths = shared + 1 + answers
            bins = assign(lengths.tolist(), size, list(zip(np.repeat(np.arange(STEP_GROUPS), STEP_SIZE).tolist(), shared.tolist(), strict=True)))  # fmt: skip
            held = [computed(members, lengths, shared) for members in bins]
            room = sum(max(size, n) for n in held)
            fewest = sum(n > size for n in held) + -(-sum(n for n in held if n <= size) // size)
            print(
                f"| {size:,} | {seed} | {len(bins)} | {fewest} | {100 * sum(held) / room:.1f}% | {lengths.sum() / sum(held):.2f} |"
            )


def computed(members: Sequence[int], lengths: np.ndarray, shared: np.ndarray) -> int:
    """Tokens of a chunk with each of its prompts counted once."""
    families = {i // STEP_SIZE: int(shared[i]) for i in members}
    return sum(int(lengths[i] - shared[i]) for i in members) + sum(families.values())
