"""Segment attention: nothing crosses from one sequence to another, in values, losses and gradients."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from broker.errors import EngineError
from learner.losses import batch_loss
from learner.losses.aggregate import AGGREGATIONS
from learner.losses.objectives import OBJECTIVES
from learner.losses.tokens import TokenBatch, token_losses
from learner.model import varlen
from learner.model.attention import NAME, plan_segments, ragged_plan, register, segment_attention
from learner.training.logprobs import score
from learner.training.packing import Sequenced, pack

SHAPE = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = [Qwen3Config(**SHAPE, head_dim=8), Qwen2Config(**SHAPE), LlamaConfig(**SHAPE, tie_word_embeddings=False)]
LENGTHS = [13, 2, 7, 7, 30, 1, 9]


def sequences(lengths: Sequence[int]) -> list[Sequenced]:
    rng = np.random.default_rng(3)
    out = []
    for row, length in enumerate(lengths):
        tokens = rng.integers(0, 90, length).astype(np.int32)
        mask = np.arange(length) >= max(1, length // 3)
        logprobs = (-4.5 + rng.normal(size=length)).astype(np.float32)
        out.append(Sequenced(tokens, mask, logprobs, np.full(length, row, np.int32), row))
    return out


def samples_of_prompts() -> list[Sequenced]:
    """Three prompts with three samples each, of different lengths, in mixed order; and one sequence of its own."""
    rng = np.random.default_rng(4)
    prompts = [rng.integers(0, 90, n).astype(np.int32) for n in (9, 2, 6)]
    out = []
    for row in range(10):
        prompt = prompts[row % 3] if row < 9 else rng.integers(0, 90, 5).astype(np.int32)
        tokens = np.concatenate([prompt, rng.integers(0, 90, 1 + 2 * row).astype(np.int32)])
        mask = np.arange(len(tokens)) >= len(prompt)
        logprobs = (-4.5 + rng.normal(size=len(tokens))).astype(np.float32)
        out.append(Sequenced(tokens, mask, logprobs, np.full(len(tokens), row, np.int32), row))
    return out


def models(config: Any) -> tuple[Any, Any]:
    """The same model with our attention and with transformers' own."""
    torch.manual_seed(0)
    packed = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=register())
    with torch.no_grad():
        for parameter in packed.parameters():
            parameter.mul_(4)  # so that attention matters
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="sdpa")
    plain.load_state_dict(packed.state_dict())
    assert (packed.config._attn_implementation, plain.config._attn_implementation) == (NAME, "sdpa")
    return packed, plain


def padded_logprobs(model: Any, items: list[Sequenced], temperature: float) -> tuple[torch.Tensor, ...]:
    """Log-probabilities, behaviour and mask ``[N, T]`` by the usual way: padding on the right and an attention mask."""
    size = max(len(item.tokens) for item in items)
    ids, attend, mask = (torch.zeros(len(items), size, dtype=torch.long) for _ in range(3))
    behavior = torch.zeros(len(items), size)
    for row, item in enumerate(items):
        n = len(item.tokens)
        ids[row, :n], attend[row, :n] = torch.from_numpy(item.tokens), 1
        mask[row, :n], behavior[row, :n] = torch.from_numpy(item.mask), torch.from_numpy(item.logprobs)
    logits = model(ids, attention_mask=attend, use_cache=False).logits[:, :-1].float() / temperature
    logprobs = torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None])[..., 0]
    return logprobs, behavior[:, 1:], mask[:, 1:].bool()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.model_type)
@pytest.mark.parametrize("name", ["grpo", "dapo", "async", "topr"])
@pytest.mark.parametrize("shared", [False, True], ids=["own-prompts", "shared-prompts"])
def test_packed_and_padded_agree_in_log_probabilities_losses_and_gradients(
    config: Any, name: str, shared: bool
) -> None:
    packed, plain = models(config)
    objective, items = OBJECTIVES[name], samples_of_prompts() if shared else sequences(LENGTHS)
    advantages = torch.linspace(-1, 1.2, len(items))
    logprobs, behavior, mask = padded_logprobs(plain, items, 0.7)
    wanted, _ = batch_loss(objective, logprobs, behavior, advantages, mask)
    wanted.backward()

    weights = AGGREGATIONS[objective.aggregation](mask.sum(1).float(), objective.constant_length)
    chunks, total = pack(items, 80 if shared else 40), 0.0
    assert len(chunks) == 2
    computed = sum(len(chunk.tokens_T) for chunk in chunks)
    assert (computed < sum(len(item.tokens) for item in items)) == shared, "a prompt is computed once a chunk"
    for chunk in chunks:
        rows = torch.tensor(chunk.rows_N)[chunk.sequence_T[chunk.mask_T]]
        scores = score(packed, chunk, temperature=0.7, rows=4)
        for row in chunk.rows_N:
            assert torch.allclose(scores.logprobs_M[rows == row], logprobs[row][mask[row]], atol=1e-5)
        known = TokenBatch(
            scores.logprobs_M, chunk.behavior_T[chunk.mask_T], advantages[rows], rows >= 0, sequence=rows
        )
        tokens = token_losses(objective, known)
        loss = (tokens.loss * weights[rows]).sum()
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(wanted.item(), abs=1e-5)
    for (key, a), (_, b) in zip(packed.named_parameters(), plain.named_parameters(), strict=True):
        gap = float((a.grad - b.grad).abs().max())
        assert gap < 1e-5 * max(1.0, float(b.grad.abs().max())), (key, gap)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_each_segment_gets_what_it_would_get_alone(lengths: list[int], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 4, sum(lengths), 8, generator=g)
    key, value = (torch.randn(1, 2, sum(lengths), 8, generator=g) for _ in range(2))
    module = torch.nn.Module()
    found, _ = segment_attention(module, query, key, value, None, 0.3, segments=plan_segments(tuple(lengths)))
    at = 0
    for length in lengths:
        q, k, v = (x[:, :, at : at + length] for x in (query, key, value))
        alone = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True).transpose(1, 2)
        assert torch.allclose(found[:, at : at + length], alone, atol=1e-5)
        at += length


def test_what_it_does_not_know_is_refused() -> None:
    x = torch.zeros(1, 2, 6, 4)
    plan, module = plan_segments((2, 4)), torch.nn.Module()
    with pytest.raises(EngineError, match="segments"):
        segment_attention(module, x, x, x, None)
    with pytest.raises(EngineError, match="no attention mask"):
        segment_attention(module, x, x, x, torch.ones(1, 1, 6, 6), segments=plan)
    with pytest.raises(EngineError, match="dropout"):
        segment_attention(module, x, x, x, None, dropout=0.1, segments=plan)
    for foreign in ("softcap", "s_aux", "position_bias"):
        with pytest.raises(EngineError, match=foreign):
            segment_attention(module, x, x, x, None, segments=plan, **{foreign: 1.0})
    with pytest.raises(EngineError, match="sliding window of 3"):
        segment_attention(module, x, x, x, None, segments=plan, sliding_window=3)


def test_a_sliding_window_that_no_sequence_reaches_changes_nothing() -> None:
    packed, plain = models(MistralConfig(**SHAPE, sliding_window=13))
    items = sequences([13, 8])
    (chunk,) = pack(items, 40)
    wanted, _, mask = padded_logprobs(plain, items, 1.0)
    assert torch.allclose(
        score(packed, chunk).logprobs_M, torch.cat([wanted[0][mask[0]], wanted[1][mask[1]]]), atol=1e-5
    )
    with pytest.raises(EngineError, match="sliding window of 13"):
        score(packed, pack(sequences([14]), 40)[0])


SHARED = (12, 3, 150, 5, 1), ((0, 0), (0, 9), (0, 0), (15, 140), (2, 4))


def kernel_by_hand(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, *_: Any, scale: float, **options: Any
) -> torch.Tensor:
    """What torch's kernel computes, one sequence after another."""
    assert options["window_size"] == (-1, 0)
    grouped, out = options.get("enable_gqa", False), []
    for start, end in itertools.pairwise(bounds.tolist()):
        one = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        out.append(
            F.scaled_dot_product_attention(*one, is_causal=True, scale=scale, enable_gqa=grouped)[0].transpose(0, 1)
        )
    return torch.cat(out)


@pytest.mark.parametrize("known", [varlen.KNOWN, varlen.KNOWN - {"enable_gqa"}], ids=["installed", "torch-2.11"])
def test_the_layout_without_padding_gives_what_the_padded_batches_give(
    known: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout alone, on any machine: the kernel needs a device (below)."""
    lengths, prefixes = SHARED
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, heads, sum(lengths), 8, generator=g) for heads in (4, 2, 2))
    wanted, _ = segment_attention(
        torch.nn.Module(), q, k, v, None, 0.3, segments=plan_segments(lengths, "cpu", prefixes)
    )
    monkeypatch.setattr(varlen, "varlen_attn", kernel_by_hand)
    monkeypatch.setattr(varlen, "KNOWN", known)
    flat = (x[0].transpose(0, 1) for x in (q, k, v))
    found = varlen.attend(*flat, ragged_plan(lengths, "cpu", prefixes), 0.3, torch.float32)
    assert torch.allclose(found[None], wanted, atol=1e-6)


def test_the_kernel_is_left_alone_without_a_device_that_has_it() -> None:
    assert plan_segments((3, 4)).ragged is None
    assert varlen.kernel_dtype(torch.zeros(7, 2, 64, dtype=torch.bfloat16)) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert varlen.kernel_dtype(torch.zeros(7, 2, 64)) is None


@pytest.mark.gpu
@pytest.mark.parametrize("kv", [8, 2], ids=["own-keys", "grouped"])
@pytest.mark.parametrize("mixed", [False, True], ids=["bfloat16", "autocast"])
def test_the_kernel_gives_what_the_padded_batches_give(kv: int, mixed: bool) -> None:
    lengths, prefixes = SHARED
    plan = plan_segments(lengths, "cuda", prefixes)
    assert plan.ragged is not None
    g = torch.Generator().manual_seed(1)
    results = []
    exact = [torch.randn(1, heads, sum(lengths), 64, generator=g).bfloat16().float() for heads in (8, kv, kv)]
    upstream = torch.randn(1, sum(lengths), 8, 64, generator=g)
    for kind, segments in ((torch.float32, replace(plan, ragged=None)), (torch.bfloat16, plan)):
        dtype = torch.float32 if mixed else kind
        q, k, v = (x.to("cuda", dtype, copy=True).requires_grad_() for x in exact)
        with torch.autocast("cuda", torch.bfloat16, enabled=mixed and kind == torch.bfloat16):
            assert (varlen.kernel_dtype(q[0].transpose(0, 1)) is not None) == (kind == torch.bfloat16)
            out, _ = segment_attention(torch.nn.Module(), q, k, v, None, 0.3, segments=segments)
        out.backward(upstream.to("cuda", out.dtype))
        assert q.grad is not None and k.grad is not None and v.grad is not None
        results.append([x.detach().float() for x in (out, q.grad, k.grad, v.grad)])
    for wanted, found in zip(*results, strict=True):
        assert float((wanted - found).abs().max()) < 0.03 * float(wanted.abs().max())
