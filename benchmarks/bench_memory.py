"""What the memory options save and cost: measured on the tiny model, and computed for larger ones from one layer of each.

The bytes that a layer holds for its backward pass are measured on the CPU with the learner's own count: they are a number of
bytes a token (the attention holds no matrix), and under autocast the weights' bfloat16 copies besides. The rest is arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen2Config, Qwen3Config
from transformers.utils import logging

from learner.model import attention, lora
from learner.model.load import load_model, set_gradient_checkpointing
from learner.model.loraconfig import LoraTable
from learner.tables import OptimizerTable
from learner.training.batch import PackedChunk
from learner.training.logprobs import score
from learner.training.memory import held_for_backward
from learner.training.optimizer import build_optimizer

TINY = str(Path(__file__).resolve().parent.parent / "recipes" / "tiny_model")
TOKENS = 16384  # of the chunk that the table is made for
SHAPES: dict[str, PretrainedConfig] = {
    "Qwen3-0.6B": Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, tie_word_embeddings=True,
    ),
    "Qwen3-1.7B": Qwen3Config(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, tie_word_embeddings=True,
    ),
    "Qwen2.5-7B": Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        vocab_size=152064, tie_word_embeddings=False,
    ),
}  # fmt: skip


def chunk_of(tokens: int, vocabulary: int) -> PackedChunk:
    """One sequence of random tokens, all trained but the first."""
    ids = torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(tokens, dtype=torch.bool)
    mask[-1] = False
    return PackedChunk(
        ids, torch.arange(tokens), (tokens,), ((0, 0),), ids.roll(-1), mask, torch.zeros(tokens, dtype=torch.long),
        torch.zeros(tokens), torch.zeros(tokens, dtype=torch.long), (0,),
    )  # fmt: skip


def held(model: Any, tokens: int, mixed: bool) -> int:
    """Bytes that the forward pass of ``tokens`` holds."""
    with held_for_backward(model, torch.device("cpu")) as count, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        loss = score(model, chunk_of(tokens, model.config.vocab_size)).logprobs_M.sum()
    del loss
    return count.bytes


def build(config: PretrainedConfig, layers: int, vocabulary: int) -> Any:
    """A model of this shape with few layers; what its weights are is no matter."""
    few = {"num_hidden_layers": layers, "vocab_size": vocabulary, "layer_types": config.layer_types[:layers]}
    small = config.__class__.from_dict({**config.to_dict(), **few})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small, attn_implementation=attention.register()).train()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    return model


def layer_bytes(config: PretrainedConfig, mixed: bool, checkpointed: bool, adapted: bool) -> tuple[float, float]:
    """What one layer holds: bytes a token, and bytes whatever the number of tokens."""
    found = {}
    for layers in (1, 2):
        model = build(config, layers, 256)
        if adapted:
            lora.adapt(model, LoraTable(rank=16), 0)
        set_gradient_checkpointing(model, checkpointed)
        for tokens in (32, 64):
            found[layers, tokens] = held(model, tokens, mixed)
    per_token = ((found[2, 64] - found[1, 64]) - (found[2, 32] - found[1, 32])) / 32
    return per_token, found[2, 32] - found[1, 32] - 32 * per_token


def measure_tiny() -> None:
    """Ratios on the tiny model: bytes held, and processor time of forward, backward and step."""
    print(
        f"tiny model, one chunk of 4096 tokens (sequences of 64), one thread\n{'':28}{'held MB':>9}{'trained':>9}{'state MB':>9}{'s':>7}"
    )
    torch.set_num_threads(1)
    for name, mixed, checkpointed, adapted in (
        ("float32", False, False, False), ("gradient_checkpointing", False, True, False), ("bfloat16", True, False, False),
        ("bfloat16, checkpointing", True, True, False), ("lora rank 16", False, False, True), ("lora, checkpointing", False, True, True),
    ):  # fmt: skip
        model = load_model(TINY, init="random", seed=1)
        if adapted:
            lora.adapt(model, LoraTable(rank=16), 0)
        set_gradient_checkpointing(model, checkpointed)
        optimizers = build_optimizer(model, OptimizerTable(lr=1e-4))
        chunk = many(64, 64, model.config.vocab_size)
        times = []
        for _ in range(7):
            began = process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = -score(model, chunk).logprobs_M.mean()
            loss.backward()
            optimizers.step()
            times.append(process_time() - began)
        with (
            held_for_backward(model, torch.device("cpu")) as count,
            torch.autocast("cpu", torch.bfloat16, enabled=mixed),
        ):
            score(model, chunk)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        print(f"{name:28}{count.bytes / 1e6:9.1f}{trained:9}{optimizers.state_bytes() / 1e6:9.2f}{median(times):7.2f}")


def many(count: int, length: int, vocabulary: int) -> PackedChunk:
    one = chunk_of(count * length, vocabulary)
    mask = one.mask_T.view(count, length).clone()
    mask[:, -1] = False
    sequence = torch.arange(count).repeat_interleave(length)
    return PackedChunk(
        one.tokens_T, torch.arange(length).repeat(count), (length,) * count, ((0, 0),) * count, one.target_T, mask.view(-1), sequence,
        one.behavior_T, one.version_T, tuple(range(count)),
    )  # fmt: skip


def compute_table() -> None:
    print(f"\nGB (1e9 bytes) for a chunk of {TOKENS} tokens")
    for name, config in SHAPES.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        size = sum(p.numel() for p in model.parameters())
        adapters = sum(
            16 * (m.in_features + m.out_features)
            for n, m in model.named_modules()
            if isinstance(m, torch.nn.Linear) and n != "lm_head"
        )
        print(f"{name}: {size / 1e9:.2f} B parameters, rank 16 adapters {adapters / 1e6:.1f} M")
        print(f"  weights float32 {4 * size / 1e9:.1f}, gradients {4 * size / 1e9:.1f}, AdamW {8 * size / 1e9:.1f}; "
              f"adapters with gradients and AdamW {16 * adapters / 1e9:.2f}; published float32 {4 * size / 1e9:.1f}, "
              f"bfloat16 {2 * size / 1e9:.1f}")  # fmt: skip
        for mixed in (False, True):
            for adapted in (False, True):
                whole, fixed = layer_bytes(config, mixed, False, adapted)
                less, rest = layer_bytes(config, mixed, True, adapted)
                layers = config.num_hidden_layers
                print(f"  {'bfloat16' if mixed else 'float32':9}{' lora' if adapted else '':5} a token and layer {whole / 1e3:.1f} kB, checkpointed {less / 1e3:.1f} kB; "
                      f"held {layers * (whole * TOKENS + fixed) / 1e9:.1f}, checkpointed {layers * (less * TOKENS + rest) / 1e9:.1f} "
                      f"(and a layer at a time {(whole * TOKENS + fixed) / 1e9:.1f})")  # fmt: skip


if __name__ == "__main__":
    logging.set_verbosity_error()
    measure_tiny()
    compute_table()
