"""Batches with the lengths of reinforcement learning, and models of random weights to train on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen2Config

from broker.messages import ChatMessage, Sampling, Segment, Trajectory, VersionSpan
from learner.model.attention import register
from learner.planning.groups import Judged
from learner.training.packing import Sequenced

VOCABULARY = 4096
TINY = str(Path(__file__).resolve().parent.parent.parent / "recipes" / "tiny_model")


def qwen2(vocabulary: int = VOCABULARY) -> Qwen2Config:
    """4 layers, 256 wide: 4.2 million parameters beside the vocabulary."""
    return Qwen2Config(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip


def build(config: PretrainedConfig, attention: str | None = None) -> Any:
    """A model with weights that follow from seed 0; with the learner's attention unless another is named."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention or register()).train()


def long_tailed(rng: np.random.Generator, count: int, total: int, least: int, most: int) -> np.ndarray:
    """``count`` log-normal lengths (sigma 1) that add up to about ``total``."""
    raw = rng.lognormal(0.0, 1.0, count)
    return np.clip(raw * total / raw.sum(), least, most).astype(int)


def sequence(rng: np.random.Generator, row: int, prompt: np.ndarray, answer: int, vocabulary: int) -> Sequenced:
    """``answer`` random tokens behind a prompt; behaviour log-probabilities near those of a flat distribution."""
    tokens = np.concatenate([prompt, rng.integers(0, vocabulary, answer)]).astype(np.int32)
    logprobs = (rng.normal(-np.log(vocabulary), 0.05, len(tokens))).astype(np.float32)
    return Sequenced(tokens, np.arange(len(tokens)) >= len(prompt), logprobs, np.zeros(len(tokens), np.int32), row)


def groups(
    rng: np.random.Generator, prompts: Sequence[int], answers: np.ndarray, vocabulary: int
) -> tuple[tuple[Judged, ...], ...]:
    """Judged samples: ``prompts[g]`` tokens and ``answers[g, i]`` behind them, rewards 0 and 1."""
    out = []
    for g, size in enumerate(prompts):
        prompt = rng.integers(0, vocabulary, size)
        group = []
        for i, answer in enumerate(answers[g]):
            s = sequence(rng, i, prompt, int(answer), vocabulary)
            spans = (Segment("prompt", 0, size, False), Segment("assistant", size, len(s.tokens), True))
            trajectory = Trajectory(
                f"bench-{g}@0", i, len(answers[g]), (ChatMessage("user", "?"),), None, "", {}, {"r": 1.0}, "train", "",
                s.tokens, np.where(s.mask, s.logprobs, 0).astype(np.float32), spans, (VersionSpan(0, size),), "stop", Sampling(),
            )  # fmt: skip
            group.append(Judged(trajectory, float(i % 2)))
        out.append(tuple(group))
    return tuple(out)
