"""The local engine on a GPU: its log-probabilities are the learner's, and at rest it gives its memory back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gputools import DEVICE, ON_ONE_GPU, allocated
from patience import until
from safetensors.torch import load_file

from actors.engine import Completion, Request
from actors.local.engine import LocalEngine
from broker.messages import Sampling
from learner.model.load import load_model
from learner.training.logprobs import score
from learner.training.packing import Sequenced, pack

pytestmark = ON_ONE_GPU
PROMPTS = {"a": [5, 9, 40], "b": [7], "c": [8, 3, 1, 99, 12, 250, 4, 4, 17]}


def engine_of(
    model: Path, mode: str = "retract", dtype: torch.dtype = torch.float32, context: int = 128
) -> LocalEngine:
    engine = LocalEngine(str(model), slots=16, context=context, mode=mode, dtype=dtype, device=DEVICE)  # type: ignore[arg-type]
    engine.apply(0, load_file(model / "model.safetensors"))
    return engine


def submit(engine: LocalEngine, tokens: int) -> None:
    for name, prompt in PROMPTS.items():
        engine.submit(Request(name, tuple(range(4)), np.array(prompt, np.int32), Sampling(max_new_tokens=tokens)))


def drain(engine: LocalEngine, count: int) -> list[Completion]:
    done: list[Completion] = []
    until(lambda: done.extend(engine.poll(0.05)) or len(done) >= count)
    return done


def sequence(c: Completion, row: int) -> Sequenced:
    prompt = np.array(PROMPTS[c.group_id], np.int32)
    tokens = np.concatenate((prompt, c.tokens))
    mask = np.arange(len(tokens)) >= len(prompt)
    logprobs = np.concatenate((np.zeros(len(prompt), np.float32), c.logprobs))
    return Sequenced(tokens, mask, logprobs, np.zeros(len(tokens), np.int32), row)


def gaps(model: Path, done: list[Completion], dtype: torch.dtype) -> torch.Tensor:
    """|log pi - log mu| of every sampled token, by the learner's own forward pass."""
    policy = load_model(str(model), device=DEVICE)
    found = []
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
        for chunk in pack([sequence(c, row) for row, c in enumerate(done)], 256, DEVICE):
            found.append((score(policy, chunk).logprobs_M - chunk.behavior_T[chunk.mask_T]).abs())
    return torch.cat(found).cpu()


@pytest.mark.parametrize(("dtype", "mean", "most"), [(torch.float32, 1e-4, 1e-3), (torch.bfloat16, 0.05, 1.0)])
def test_log_probabilities_are_the_learners(tiny_model: Path, dtype: torch.dtype, mean: float, most: float) -> None:
    engine = engine_of(tiny_model, dtype=dtype)
    submit(engine, 40)
    gap = gaps(tiny_model, drain(engine, 12), dtype)
    assert len(gap) > 100 and float(gap.mean()) < mean and float(gap.max()) < most, (gap.mean(), gap.max())


@pytest.mark.parametrize("mode", ["retract", "in_place", "abort"])
def test_at_rest_the_memory_is_given_back_and_samples_go_on_behind_it(tiny_model: Path, mode: str) -> None:
    before = allocated()
    engine = engine_of(tiny_model, mode, context=1024)
    submit(engine, 100)
    done = [c for _ in range(8) for c in engine.poll(0.0)]
    full = allocated() - before
    engine.rest()
    rested = allocated() - before
    assert rested < 0.1 * full, f"{rested} of {full} bytes are still held"
    assert all(c.finish_reason == "abort" for c in engine.poll(0.2)) or mode != "abort"
    engine.wake()
    assert allocated() - before > 0.9 * full
    if mode == "abort":
        submit(engine, 40)
        done = []
    else:
        assert len(done) < 12
    done += drain(engine, 12 - len(done))
    gap = gaps(tiny_model, [c for c in done if c.finish_reason != "abort"], torch.float32)
    assert float(gap.max()) < 1e-3
