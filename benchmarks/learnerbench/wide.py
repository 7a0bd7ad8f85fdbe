"""A whole step of a model of the size of the real one, packed with shared prompts and AdamW in one pass, against the usual padded step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig

from learner.tables import OptimizerTable
from learner.training.optimizer import build_optimizer

from . import cases
from .measuring import cpu_medians
from .packed import packed_step, padded_step

GROUPS, SIZE, PROMPT, ANSWER, LONGEST, MICRO, CHUNK = 2, 8, 47, 16, 64, 8, 1024
SMOLLM2 = LlamaConfig(
    vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    max_position_embeddings=2048, tie_word_embeddings=True,
)  # fmt: skip


def report(times: int, rounds: int) -> None:
    print(
        f"## A step of 135 million parameters\n\nSmolLM2's shape, random weights; {GROUPS} groups of {SIZE}, prompts of {PROMPT} tokens, log-normal answers (mean {ANSWER}, at most {LONGEST}). Padded: micro-batches of {MICRO}, transformers' sdpa, torch's own AdamW; packed: prompts shared, AdamW in one pass.\n"
    )
    print("| trained tokens | padded: s | packed: s | times as fast | of the packed: AdamW |\n|---|---|---|---|---|")
    packed, plain = cases.build(SMOLLM2), cases.build(SMOLLM2, "sdpa")
    ours = build_optimizer(packed, OptimizerTable(lr=1e-6))
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-6)
    for seed in range(times):
        rng = np.random.default_rng(seed)
        answers = cases.long_tailed(rng, GROUPS * SIZE, ANSWER * GROUPS * SIZE, 2, LONGEST)
        prompts = [rng.integers(0, SMOLLM2.vocab_size, PROMPT) for _ in range(GROUPS)]
        items = [
            cases.sequence(rng, row, prompts[row // SIZE], int(n), SMOLLM2.vocab_size) for row, n in enumerate(answers)
        ]
        advantages_N = torch.from_numpy(rng.normal(size=len(items))).float()

        def usual(items: Any = items, advantages_N: torch.Tensor = advantages_N) -> None:
            padded_step(plain, items, advantages_N, MICRO)
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            theirs.step()

        def learners(items: Any = items, advantages_N: torch.Tensor = advantages_N) -> None:
            packed_step(packed, items, advantages_N, CHUNK)
            ours.step()

        gradients = [torch.zeros_like(p) for p in packed.parameters()]

        def adamw(gradients: list[torch.Tensor] = gradients) -> None:
            for parameter, gradient in zip(packed.parameters(), gradients, strict=True):
                parameter.grad = gradient
            ours.step()

        ways = {"padded": usual, "packed": learners, "adamw": adamw}
        for work in ways.values():
            work()
        seconds = cpu_medians(ways, rounds)
        a, b, c = (seconds[name] for name in ways)
        print(f"| {answers.sum()} | {a:.2f} | {b:.2f} | {a / b:.2f} | {c:.2f} |", flush=True)
