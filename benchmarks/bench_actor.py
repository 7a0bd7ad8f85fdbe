"""Tokens a second of the local engine on one thread, against transformers' generate in the same run.

``python benchmarks/bench_actor.py`` takes the tiny recipe's shape; ``--wide`` a Llama of 135 million random weights (SmolLM2's shape).
Runs of both take turns, so that what else the machine does falls on both; the ratio is that of the medians.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from actors.engine import Completion, Request
from actors.local.engine import LocalEngine
from broker.messages import Sampling
from learner.model.load import load_model, save_model

TINY = str(Path(__file__).resolve().parent.parent / "recipes" / "tiny_model")
SIZE, SLOTS = 16, 64


def model_of(directory: str, wide: bool) -> Any:
    """A random model of the wanted shape, saved with a tokenizer."""
    if not wide:
        model = load_model(TINY, init="random")
        save_model(model, TINY, Path(directory))
        return model
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=2048, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(directory)
    return model


def ours(engine: LocalEngine, prompts: list[np.ndarray], limits: list[int]) -> float:
    """Ragged groups: lengths differ, so free slots are filled while others go on."""
    for i, prompt in enumerate(prompts):
        engine.submit(Request(str(i), tuple(range(SIZE)), prompt, Sampling(max_new_tokens=limits[i])))
    done: list[Completion] = []
    start = time.process_time()
    while len(done) < len(prompts) * SIZE:
        done += engine.poll(1.0)
    return sum(len(c.tokens) for c in done) / (time.process_time() - start)


def theirs(plain: Any, prompts: list[np.ndarray], answer: int) -> float:
    """One even batch, which is the best case of a batch that ends together."""
    batch = torch.from_numpy(np.repeat(np.stack(prompts[: SLOTS // SIZE]), SIZE, 0)).long()
    start = time.process_time()
    with torch.no_grad():
        out = plain.generate(
            batch, attention_mask=torch.ones_like(batch), do_sample=True, max_new_tokens=answer, min_new_tokens=answer, top_k=0
        )  # fmt: skip
    return (out.shape[1] - batch.shape[1]) * len(batch) / (time.process_time() - start)


def main() -> None:
    wide = "--wide" in sys.argv[1:]
    torch.set_num_threads(1)
    groups, rounds, answer = (8, 3, 16) if wide else (32, 9, 33)
    with tempfile.TemporaryDirectory() as directory:
        model = model_of(directory, wide)
        engine = LocalEngine(directory, slots=SLOTS, context=256)
        engine.apply(0, model.state_dict())
        rng = np.random.default_rng(0)
        prompts = [rng.integers(0, 300, 17).astype(np.int32) for _ in range(groups)]
        limits = [int(n) for n in rng.integers(answer // 2, answer * 3 // 2, groups)]
        plain = AutoModelForCausalLM.from_pretrained(directory)
        plain.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=model.config.eos_token_id)
        fast, slow = [], []
        for _ in range(rounds):
            fast.append(ours(engine, prompts, limits))
            slow.append(theirs(plain, prompts, answer))
    print(f"| sampler, {SLOTS} slots, one thread | useful tokens per CPU second: median | best |\n|---|---|---|")
    print(f"| local engine, ragged groups of {SIZE} | {median(fast):,.0f} | {max(fast):,.0f} |")
    print(f"| transformers generate, batch {SLOTS} | {median(slow):,.0f} | {max(slow):,.0f} |")
    print(f"\nratio {median(fast) / median(slow):.2f} of medians, {max(fast) / max(slow):.2f} of the best")


if __name__ == "__main__":
    main()
