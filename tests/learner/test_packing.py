"""Packing and segment attention: nothing crosses from one sequence to another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from learner import attention
from learner.logprobs import score, token_logprobs
from learner.packing import Sequenced, assign, pack, packing_efficiency

SHAPE = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = [Qwen3Config(**SHAPE, head_dim=8), Qwen2Config(**SHAPE), LlamaConfig(**SHAPE, tie_word_embeddings=False)]


@given(st.lists(st.integers(1, 120), min_size=1, max_size=60))
@settings(deadline=None)
def test_every_sequence_is_in_one_chunk_and_none_is_too_full(lengths: list[int]) -> None:
    bins = assign(lengths, 100)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(len(members) == 1 or sum(lengths[i] for i in members) <= 100 for members in bins)


def sequences(lengths: list[int], vocabulary: int) -> list[Sequenced]:
    rng = np.random.default_rng(3)
    out = []
    for row, length in enumerate(lengths):
        tokens = rng.integers(0, vocabulary, length).astype(np.int32)
        mask = np.arange(length) >= max(1, length // 3)
        out.append(Sequenced(tokens, mask, -rng.random(length).astype(np.float32), np.full(length, row, np.int32), row))
    return out


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.model_type)
def test_packed_and_padded_agree_in_values_and_gradients(config: object) -> None:
    torch.manual_seed(0)
    name = attention.register()
    packed = AutoModelForCausalLM.from_config(config, attn_implementation=name)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    plain.load_state_dict(packed.state_dict())
    items = sequences([13, 2, 7, 7, 30, 1, 9], 90)
    chunks = pack(items, 40)
    assert len(chunks) == 2
    found: dict[int, list[float]] = {}
    for chunk in chunks:
        logprobs = score(packed, chunk, temperature=0.7, rows=4).logprobs_M
        logprobs.sum().backward()
        for row, value, behavior in zip(
            chunk.sequence_T[chunk.mask_T].tolist(),
            logprobs.tolist(),
            chunk.behavior_T[chunk.mask_T].tolist(),
            strict=True,
        ):
            found.setdefault(chunk.rows_N[row], []).append(value)
            assert behavior < 0
    for item in items:
        if len(item.tokens) < 2:
            assert item.row not in found
            continue
        ids = torch.from_numpy(item.tokens).long()[None]
        all_ = torch.log_softmax(plain(ids).logits[0].float() / 0.7, -1)
        wanted = all_[:-1].gather(1, ids[0, 1:, None])[:, 0][torch.from_numpy(item.mask[1:])]
        wanted.sum().backward()
        assert found[item.row] == pytest.approx(wanted.tolist(), abs=1e-5)
    for (key, a), (_, b) in zip(packed.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5), key


def test_efficiency_counts_the_room_that_is_used() -> None:
    chunks = pack(sequences([50, 50, 30, 70], 90), 100)
    assert packing_efficiency(chunks, 100) == 1.0


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_log_probabilities_without_the_logits(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.logprobs.SMALL", 0)
    torch.manual_seed(1)
    hidden = torch.randn(17, 8, dtype=torch.float32, requires_grad=True)
    weight = (torch.randn(23, 8) * 30).requires_grad_()
    target = torch.randint(0, 23, (17,))
    upstream = torch.randn(17)
    scores = token_logprobs(hidden, weight, target, temperature=1.3, rows=rows)
    (scores.logprobs_M * upstream).sum().backward()
    got = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    everything = torch.log_softmax(hidden @ weight.T / 1.3, -1)
    wanted = everything.gather(1, target[:, None])[:, 0]
    (wanted * upstream).sum().backward()
    assert torch.allclose(scores.logprobs_M, wanted, atol=1e-4)
    assert torch.allclose(got[0], hidden.grad, atol=1e-4) and torch.allclose(got[1], weight.grad, atol=1e-4)
    entropy = -(everything.exp() * everything.where(everything > -1e30, 0)).sum(-1)
    assert torch.allclose(scores.entropy_M, entropy, atol=1e-4)
    assert (scores.correct_M == (everything.argmax(-1) == target)).all()
