"""One training step of a random Qwen3 on a CUDA device: tokens a second, share of the device's peak, memory; and TRL's beside it.

TRL's part runs where TRL is installed: its GRPOTrainer's loss on the same samples, backward, and AdamW, all in bfloat16 autocast.
Flops of the model are 6 a parameter (the embedding is not one, the head is) and token, and 6 times the causal half of attention;
what is computed again is not counted.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config

from learner.planning.groups import Judged
from learner.tables import LearnerTable
from learner.training.optimizer import build_optimizer
from learner.training.trainer import TrainState, train_step

from . import cases

SHARED = {"num_key_value_heads": 8, "head_dim": 128, "num_attention_heads": 16, "num_hidden_layers": 28}
SHAPES = {
    "Qwen3-0.6B": {**SHARED, "hidden_size": 1024, "intermediate_size": 3072},
    "Qwen3-1.7B": {**SHARED, "hidden_size": 2048, "intermediate_size": 6144},
}
VOCABULARY, LENGTHS, TOKENS, PROMPT, SIZE = 151_936, (4096, 16_384), 65_536, 512, 4
PEAK = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bfloat16 flops a second by the makers' data sheets."""


@dataclass(frozen=True)
class Plan:
    """One row: a model, and samples of ``length`` tokens, ``tokens`` in all, in groups that share a prompt."""

    config: Qwen3Config
    length: int
    tokens: int
    prompt: int = PROMPT
    device: str = "cuda"

    @property
    def count(self) -> int:
        return max(SIZE, self.tokens // self.length)

    def batch(self) -> tuple[tuple[Judged, ...], ...]:
        answers = np.full((self.count // SIZE, SIZE), self.length - self.prompt)
        return cases.groups(
            np.random.default_rng(0), [self.prompt] * (self.count // SIZE), answers, self.config.vocab_size
        )

    def flops(self, model: Any) -> float:
        """Of one step: all samples whole, whatever is computed once for several."""
        head = model.get_output_embeddings().weight.numel()
        weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
        if not self.config.tie_word_embeddings:
            weights -= head
        wide = self.config.num_attention_heads * self.config.head_dim
        attention = 6 * self.config.num_hidden_layers * wide * self.length
        return float(self.count * self.length * (6 * weights + attention))


@dataclass(frozen=True)
class Seen:
    seconds: float
    peak_gib: float


def timed(step: Callable[[], object], device: str, rounds: int) -> Seen:
    """Median seconds by the clock of a step (the first two are not counted), and the most memory that was allocated."""
    on_cuda = device == "cuda"
    seconds = []
    for turn in range(rounds + 2):
        if on_cuda:
            torch.cuda.synchronize()
        if turn == 2 and on_cuda:
            torch.cuda.reset_peak_memory_stats()
        start = time.monotonic()
        step()
        if on_cuda:
            torch.cuda.synchronize()
        if turn >= 2:
            seconds.append(time.monotonic() - start)
    return Seen(median(seconds), torch.cuda.max_memory_allocated() / 2**30 if on_cuda else 0.0)


def ours(plan: Plan, rounds: int) -> tuple[Seen, float]:
    """A whole ``train_step``; and its flops."""
    table = LearnerTable.model_validate(
        {"objective": "grpo", "dtype": "bfloat16", "pack_tokens": 16_384, "optimizer": {"lr": 1e-6}}
    )
    model = cases.build(plan.config).to(plan.device)
    state, batch = TrainState.begin(model, build_optimizer(model, table.optimizer), 0, table), plan.batch()
    return timed(lambda: train_step(state, batch, table, 1000), plan.device, rounds), plan.flops(model)


def trl(plan: Plan, rounds: int) -> Seen:
    """The loss of TRL's GRPOTrainer in micro-batches of 16,384 tokens, backward, clip, and the same AdamW."""
    import tempfile

    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    model = cases.build(plan.config, "sdpa").to(plan.device)
    samples = [judged.trajectory for group in plan.batch() for judged in group]
    micro = max(1, 16_384 // plan.length)
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=SIZE, num_generations=SIZE, beta=0.0, loss_type="grpo",
        bf16=plan.device == "cuda", use_cpu=plan.device == "cpu", report_to=[], gradient_checkpointing=False,
        max_completion_length=plan.length - plan.prompt,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=config,
        train_dataset=Dataset.from_list([{"prompt": "?"}] * SIZE), processing_class=AutoTokenizer.from_pretrained(cases.TINY),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = len(samples) // micro
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0)
    ids_NT = torch.from_numpy(np.stack([s.tokens for s in samples])).long().to(plan.device)
    behavior_NT = torch.from_numpy(np.stack([s.logprobs for s in samples])).to(plan.device)
    advantages_N = torch.tensor([1.0, -1.0], device=plan.device).repeat(len(samples) // 2)

    def step() -> None:
        for at in range(0, len(samples), micro):
            ids, old = ids_NT[at : at + micro], behavior_NT[at : at + micro]
            everything = torch.ones_like(ids)
            loss = trainer.compute_loss(trainer.model, {
                "prompt_ids": ids[:, : plan.prompt], "prompt_mask": everything[:, : plan.prompt],
                "completion_ids": ids[:, plan.prompt :], "completion_mask": everything[:, plan.prompt :],
                "advantages": advantages_N[at : at + micro], "old_per_token_logps": old[:, plan.prompt :],
            })  # fmt: skip
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, plan.device, rounds)


def report(times: int, rounds: int) -> None:
    if not torch.cuda.is_available():
        print("## On a CUDA device\n\nThere is none here.")
        return
    name = torch.cuda.get_device_name()
    peak = next((flops for part, flops in PEAK.items() if part in name), None)
    print(
        f"## On a CUDA device\n\n{name}; {TOKENS:,} tokens a step, {SIZE} samples a prompt of {PROMPT}, bfloat16 autocast over float32 weights, GRPO, AdamW. Seconds by the clock.\n"
    )
    print("| model | length | trainer | s a step | tokens/s | MFU | GiB |\n|---|---|---|---|---|---|---|")
    for shape, sizes in SHAPES.items():
        config = Qwen3Config(vocab_size=VOCABULARY, max_position_embeddings=32_768, tie_word_embeddings=True, **sizes)
        for length in LENGTHS:
            for _ in range(times):
                plan = Plan(config, length, TOKENS)
                seen, flops = ours(plan, rounds)
                show(shape, plan, "headrace", seen, flops, peak)
                gc.collect()
                torch.cuda.empty_cache()
                if find_spec("trl"):
                    show(shape, plan, "TRL GRPOTrainer", trl(plan, rounds), flops, peak)
                    gc.collect()
                    torch.cuda.empty_cache()
    if not find_spec("trl"):
        print("\nTRL is not installed here.")


def show(shape: str, plan: Plan, trainer: str, seen: Seen, flops: float, peak: float | None) -> None:
    used = f"{100 * flops / seen.seconds / peak:.1f}%" if peak else "?"
    rate = plan.count * plan.length / seen.seconds
    print(
        f"| {shape} | {plan.length:,} | {trainer} | {seen.seconds:.2f} | {rate:,.0f} | {used} | {seen.peak_gib:.1f} |",
        flush=True,
    )
