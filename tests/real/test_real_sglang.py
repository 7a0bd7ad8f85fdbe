"""The real model in an SGLang server: new weights reach it, its tied head with its embedding, and it samples from them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from patience import HANG

from actors.engine import Completion, Request
from actors.sglang.engine import SglangEngine
from actors.sglang.keeper import Keeper
from actors.sglang.server import Server
from broker.chat import Chat
from broker.control.server import ControlServer
from broker.messages import ChatMessage, Sampling
from broker.weights.client import WeightClient
from broker.weights.publisher import WeightPublisher
from learner.model.load import load_model
from learner.model.policy import PolicyWeights
from learner.training.logprobs import score
from learner.training.packing import Sequenced, pack

pytestmark = [pytest.mark.real, pytest.mark.sglang]
END = 2
CONTEXT = 128


@pytest.fixture
def server(smollm: Path, tmp_path: Path) -> Iterator[Server]:
    made = Server(
        tmp_path / "server", lambda: str(smollm), device="cpu", dtype="float32", slots=4, context=CONTEXT, seed=1
    )
    keeper = Keeper(made)
    keeper.begin()
    yield made
    keeper.stop()


def sampled(engine: SglangEngine, prompt: np.ndarray) -> list[Completion]:
    engine.submit(Request("q", (0, 1), prompt, Sampling(max_new_tokens=12)))
    done: list[Completion] = []
    deadline = time.monotonic() + HANG
    while len(done) < 2:
        done += engine.poll(0.1)
        assert time.monotonic() < deadline, "no samples"
    return done


@torch.no_grad()
def worst(model: torch.nn.Module, prompt: np.ndarray, done: list[Completion]) -> float:
    """The largest difference of a log-probability from what the learner computes."""
    sequences = []
    for row, c in enumerate(done):
        mask = np.concatenate((np.zeros(len(prompt), bool), np.ones(len(c.tokens), bool)))
        logprobs = np.concatenate((np.zeros(len(prompt), np.float32), c.logprobs))
        versions = np.where(mask, 0, -1).astype(np.int32)
        sequences.append(Sequenced(np.concatenate((prompt, c.tokens)), mask, logprobs, versions, row))
    (chunk,) = pack(sequences, 1024)
    return float((score(model, chunk).logprobs_M - chunk.behavior_T[chunk.mask_T]).abs().max())


def test_new_weights_reach_the_server(server: Server, smollm: Path, tmp_path: Path) -> None:
    model = load_model(str(smollm))
    engine = SglangEngine(str(smollm), [server.url], slots=4, context=CONTEXT, mode="retract")
    control = ControlServer()
    publisher = WeightPublisher(control, tmp_path / "weights", template=smollm, timeout=120.0, bucket_bytes=64 << 20)
    client = WeightClient("server", engine.sinks[""])
    try:
        assert engine.ends == {END}
        prompt = np.array(Chat(engine.tokenizer).prompt([ChatMessage("user", "Say hello.")]).ids, np.int32)
        engine.sinks[""].load(smollm, 0)
        before = sampled(engine, prompt)
        assert worst(model, prompt, before) < 1e-4
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for parameter in model.parameters():  # as a step changes it: the embedding, which is the head, too
                parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=generator))
        assert worst(model, prompt, before) > 1e-3
        client.connect(control.endpoint)
        deadline = time.monotonic() + HANG
        while not control.receivers():
            assert time.monotonic() < deadline, "the server is no receiver"
            time.sleep(0.02)
        publisher.publish(1, dict(PolicyWeights(model)))
        assert publisher.wait(HANG) and engine.version == 1
        after = sampled(engine, prompt)
        assert all(c.versions[0].version == 1 for c in after)
        assert worst(model, prompt, after) < 1e-4
    finally:
        client.close()
        publisher.close()
        control.close()
        engine.close()
