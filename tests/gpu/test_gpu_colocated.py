"""A whole run on one GPU in turns, with the local engine; and a real server that gives its memory back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gputools import DEVICE, ON_ONE_GPU
from patience import HANG, until
from ringtools import end_run, sets, start_run, verify
from runlog import results_of, said

from actors.engine import Completion, Request
from actors.sglang.engine import SglangEngine
from actors.sglang.keeper import Keeper
from actors.sglang.server import Server
from broker.messages import Sampling

pytestmark = ON_ONE_GPU


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_on_one_gpu_takes_turns(tmp_path: Path, dtype: str) -> None:
    settings = (
        "learner.colocated=true", "learner.max_lag=0", f"learner.device={DEVICE}", f"actors.device={DEVICE}",
        f"learner.dtype={dtype}", f"actors.dtype={dtype}", "stage.1.steps=12", "stage.1.eval_every=6",
    )  # fmt: skip
    run = start_run(tmp_path, *sets(*settings))
    try:
        assert run.wait(HANG) == 0, said(tmp_path)
    finally:
        end_run(run)
    audit = verify(tmp_path)
    assert (audit["steps"], audit["trained"], audit["outstanding"], audit["problems"]) == (12, 48, 0, [])
    results = results_of(tmp_path)
    assert all(r.metrics["staleness_max"] == 0 for r in results)
    assert max(r.metrics["mismatch"] for r in results) < (1e-3 if dtype == "float32" else 0.1)


@pytest.fixture
def engine(tiny_model: Path, tmp_path: Path) -> Iterator[SglangEngine]:
    server = Server(
        tmp_path / "server", lambda: str(tiny_model), device=DEVICE, dtype="float32", slots=16, context=512, seed=1,
        arguments=("--enable-memory-saver", "--mem-fraction-static", "0.3", "--attention-backend", "triton"),
    )  # fmt: skip
    keeper = Keeper(server)
    assert keeper.begin()
    engine = SglangEngine(str(tiny_model), [server.url], slots=16, context=512, newest=lambda: (tiny_model, 3))
    engine.sinks[""].load(tiny_model, 3)
    yield engine
    engine.close()
    keeper.stop()


def drain(engine: SglangEngine, count: int) -> list[Completion]:
    done: list[Completion] = []
    until(lambda: done.extend(engine.poll(0.05)) or len(done) >= count)
    return done


@pytest.mark.sglang
def test_a_server_at_rest_gives_its_memory_back_and_comes_back_with_the_newest_weights(
    engine: SglangEngine, tiny_model: Path
) -> None:
    free = torch.cuda.mem_get_info()[0]
    request = Request("a", tuple(range(8)), np.array([5, 9, 40], np.int32), Sampling(max_new_tokens=400))
    engine.submit(request)
    time.sleep(0.1)
    engine.rest()
    given = torch.cuda.mem_get_info()[0] - free
    assert given > 0.2 * torch.cuda.mem_get_info()[1], f"{given} bytes were given back"
    second = SglangEngine(
        str(tiny_model), [link.url for link in engine._links], slots=16, context=512, newest=lambda: (tiny_model, 3)
    )
    try:
        second.rest()  # an actor that has come in the place of the first: nothing is given back twice
        second.wake(3, 0.0)
        until(lambda: second.version == 3)
    finally:
        second.close()
    engine.wake(3, 0.0)
    until(lambda: engine.version == 3)
    assert {c.index for c in drain(engine, 8)} == set(range(8))
    assert torch.cuda.mem_get_info()[0] < free + given / 2
