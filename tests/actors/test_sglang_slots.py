"""Adaptive slots on a real server on the CPU whose key-value cache is small: what is in flight comes down to what it holds, and up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from patience import HANG
from prometheus_client import CollectorRegistry
from test_local_engine import CONFIGS, PROMPTS, Policy, request

from actors.config import ActorsTable
from actors.pace import AdaptivePace, pace_of
from actors.sglang.engine import SglangEngine
from actors.sglang.keeper import Keeper
from actors.sglang.server import Server
from monitoring.metrics import ActorMetrics

pytestmark = pytest.mark.sglang
CONTEXT, CACHE = 64, 640  # tokens: a dozen samples of the longest kind


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SglangEngine]:
    torch.set_num_threads(1)
    policy = Policy(tmp_path_factory.mktemp("policy"), CONFIGS["qwen3"])
    home: Path = tmp_path_factory.mktemp("server")
    server = Server(
        home, lambda: str(policy.path), device="cpu", dtype="float32", slots=64, context=CONTEXT, seed=1, adaptive=True,
        arguments=("--max-total-tokens", str(CACHE), "--max-running-requests", "64"),
    )  # fmt: skip
    keeper = Keeper(server)
    keeper.begin()
    engine = SglangEngine(str(policy.path), [server.url], slots=64, context=CONTEXT)
    engine.sinks[""].load(policy.path, 0)
    yield engine
    engine.close()
    keeper.stop()


def drive(engine: SglangEngine, pace: AdaptivePace, tokens: int, until: Callable[[int], bool]) -> tuple[int, list[int]]:
    """Keep what ``pace`` allows in flight, answers of about ``tokens`` tokens, ``until`` the limit is as wanted; returns how many came, and
    the limits that were seen."""
    asked, came, limits, deadline = 0, 0, [pace.slots.limit], time.monotonic() + HANG
    while not until(pace.slots.limit):
        assert time.monotonic() < deadline, f"{limits[::50]}, {engine.pressure()}"
        pace.follow(pace.slots.limit - max(0, engine.room()), 1)
        while engine.room() > 0:
            asked += 1
            engine.submit(request(f"{tokens}-{time.monotonic_ns()}-{asked}", PROMPTS["a"], 1, max_new_tokens=tokens))
        done = engine.poll(0.05)
        came += len(done)
        pace.finished += len(done)
        limits.append(pace.slots.limit)
    return came, limits


def test_what_is_in_flight_comes_down_to_what_the_cache_holds_and_rises_where_there_is_room(
    engine: SglangEngine,
) -> None:
    metrics = ActorMetrics(CollectorRegistry())
    pace = pace_of(ActorsTable(slots=64, adaptive=True), engine, metrics)
    assert isinstance(pace, AdaptivePace) and pace.ahead == 0
    came, limits = drive(engine, pace, 48, lambda limit: limit < 45)
    seen = engine.pressure()
    assert seen.most == 64 and (seen.usage > 0.3 or seen.retracted > 0), "the server has said so"
    assert limits[0] == 64 and came > 0
    lowest = pace.slots.limit
    came, _ = drive(engine, pace, 4, lambda limit: limit > lowest)
    assert came > 0, "short answers leave room"
