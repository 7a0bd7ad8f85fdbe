"""Tokens a second of the local engine on one thread, against transformers' generate in the same run.

``python benchmarks/bench_actor.py`` takes the tiny recipe's shape; ``--wide`` a Llama of 135 million random weights (SmolLM2's shape);
``--model DIR`` a model on disk. Two things are compared: ragged groups with shared prompts, and decode steps alone, in which nothing is shared and
nobody joins or leaves. Runs of both sides take turns, so that what else the machine does falls on both; the ratios are those of the medians.
"""

from __future__ import annotations

import argparse
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
    """A random model of the wanted shape, saved with a tokenizer. What is there already is loaded."""
    if (Path(directory) / "config.json").exists():
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
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
    batch = np.repeat(np.stack(prompts[: SLOTS // SIZE]), SIZE, 0)
    return answer * len(batch) / generated(plain, batch, answer)


def generated(plain: Any, prompts: np.ndarray, answer: int) -> float:
    """CPU seconds in which transformers goes on with ``prompts [B, P]`` by ``answer`` tokens each."""
    batch = torch.from_numpy(prompts).long()
    start = time.process_time()
    with torch.no_grad():
        out = plain.generate(
            batch, attention_mask=torch.ones_like(batch), do_sample=True, max_new_tokens=answer, min_new_tokens=answer, top_k=0
        )  # fmt: skip
    assert out.shape[1] - batch.shape[1] == answer
    return time.process_time() - start


def drawn(engine: LocalEngine, prompts: np.ndarray, answer: int) -> float:
    """The same of the engine."""
    for i, prompt in enumerate(prompts):
        engine.submit(Request(str(i), (0,), prompt, Sampling(max_new_tokens=answer)))
    done: list[Completion] = []
    start = time.process_time()
    while len(done) < len(prompts):
        done += engine.poll(1.0)
    assert all(len(c.tokens) == answer for c in done)
    return time.process_time() - start


def steps_alone(engine: LocalEngine, plain: Any, rounds: int, answer: int, rng: np.random.Generator) -> None:
    """Whole runs less runs of one token each: what is left are the decode steps."""
    prompts = rng.integers(0, 300, (SLOTS, 17)).astype(np.int32)
    ends, engine.ends = engine.ends, frozenset()
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds + 1):  # the first one warms up
        both = [(way(side, prompts, answer) - way(side, prompts, 1)) / (answer - 1) for way, side in ((drawn, engine), (generated, plain))]  # fmt: skip
        seconds.append((both[0], both[1]))
    engine.ends = ends
    fast, slow = (sorted(x) for x in zip(*seconds[1:], strict=True))
    print(f"| decode steps alone, {SLOTS} rows | CPU ms a step: median | best |\n|---|---|---|")
    print(f"| local engine | {1e3 * median(fast):.2f} | {1e3 * fast[0]:.2f} |")
    print(f"| transformers generate | {1e3 * median(slow):.2f} | {1e3 * slow[0]:.2f} |")
    print(f"\nratio {median(slow) / median(fast):.2f} of medians, {slow[0] / fast[0]:.2f} of the best\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--model", default="")
    parser.add_argument("--rounds", type=int, default=0)
    options = parser.parse_args()
    large = options.wide or bool(options.model)
    torch.set_num_threads(1)
    groups, rounds, answer = (8, 3, 7) if large else (32, 9, 33)
    rounds = options.rounds or rounds
    with tempfile.TemporaryDirectory() as made:
        directory = options.model or made
        model = model_of(directory, options.wide)
        engine = LocalEngine(directory, slots=SLOTS, context=256)
        engine.apply(0, model.state_dict())
        rng = np.random.default_rng(0)
        prompts = [rng.integers(0, 300, 17).astype(np.int32) for _ in range(groups)]
        limits = [int(n) for n in rng.integers(answer // 2, answer * 3 // 2, groups)]
        plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        plain.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=model.config.eos_token_id)
        steps_alone(engine, plain, rounds, answer, rng)
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
