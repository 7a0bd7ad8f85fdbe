"""Episodes on a real SGLang server: tokens in, tokens out over several turns, weights that change on the way, and what a later turn costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from patience import HANG
from prometheus_client import CollectorRegistry
from test_episodes import TOPICS, ask, committed, log_beside_games, samples, stopped
from test_local_engine import Policy
from test_sglang_engine import Road, drain

from actors.config import ActorsTable, EnvironmentTable
from actors.engine import Request
from actors.intake import Intake
from actors.rooms import Rooms
from actors.sglang.engine import SglangEngine
from actors.sglang.server import Server
from actors.worker import ActorWorker
from broker.log import Log
from broker.messages import Sampling, Trajectory
from monitoring.metrics import ActorMetrics, BrokerMetrics, SystemMetrics

pytestmark = pytest.mark.sglang


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    yield from log_beside_games(tmp_path)


class Actor:
    """A worker on the server, whose weights are version 0 of ``policy``; ``count`` reads one of its metrics."""

    def __init__(self, log: Log, url: str, policy: Policy, base: Path, mode: str, **options: Any) -> None:
        self.engine = SglangEngine(str(policy.path), [url], slots=8, context=256, mode=mode)  # type: ignore[arg-type]
        self.engine.sinks[""].load(policy.path, 0)
        httpx.post(f"{url}/flush_cache").raise_for_status()  # of other tests
        self._registry = CollectorRegistry()
        metrics = (ActorMetrics(self._registry), BrokerMetrics(self._registry), SystemMetrics(self._registry, "actor"))
        rooms = Rooms({"game": EnvironmentTable(use="games.py:Echo", **options)}, base)
        self.worker = ActorWorker("a", Intake("a", log, TOPICS), self.engine, rooms, ActorsTable(slots=8), *metrics)

    def count(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(f"headrace_{name}_total", labels) or 0.0

    def work(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + HANG
        while not done():
            self.worker.round()
            assert time.monotonic() < deadline

    def close(self) -> None:
        self.worker.close()
        self.engine.close()


Opened = Callable[..., Actor]


@pytest.fixture
def actor(log: Log, server: Server, policy: Policy, tmp_path: Path) -> Iterator[Opened]:
    opened: list[Actor] = []

    def make(mode: str = "retract", **options: Any) -> Actor:
        opened.append(Actor(log, server.url, policy, tmp_path, mode, **options))
        return opened[-1]

    yield make
    for it in opened:
        it.close()


def gaps(sample: Trajectory, *held: Policy) -> np.ndarray:
    """By how much each trained token's log-probability differs from that of its version, of ``held`` in turn, over the whole episode."""
    whole = [p.logprobs(sample.tokens[:1], sample.tokens[1:]) for p in held]
    mask, versions = sample.mask(), sample.versions_per_token()
    wanted = np.array([whole[versions[t] % len(held)][t - 1] for t in np.flatnonzero(mask)])
    return np.abs(sample.logprobs[mask] - wanted)


def test_an_episode_on_a_server_is_what_it_sampled_in_the_context_that_was_said(
    log: Log, actor: Opened, policy: Policy
) -> None:
    it = actor(rounds=3, opening="Sample ")
    ask(log, "d-1", "d-2", size=4, max_new_tokens=50)
    it.work(lambda: committed(log) == 2)
    found = samples(log)
    assert sorted(s.id for s in found) == [f"d-{n}@0#{i}" for n in (1, 2) for i in range(4)]
    for s in found:
        roles = [x.role for x in s.segments]
        assert roles == ["prompt", *["assistant", "user"] * (len(roles) // 2 - 1), "assistant"]
        assert s.engine.startswith("sglang/") and s.oldest_version == s.newest_version == 0
        assert gaps(s, policy).max() < 1e-4, (
            "transformers, given the whole episode at once, says the same of every reply"
        )
        assert not s.logprobs[~s.mask()].any()
        spoken = [s.tokens[x.start : x.end].tolist() for x in s.segments if x.role == "assistant"]
        for tokens, reply in zip(spoken, (m.content for m in s.turns if m.role == "assistant"), strict=True):
            assert it.engine.tokenizer.decode(tokens).startswith(reply), "the text is that of the very tokens"
    whole = stopped(found)
    assert whole and all(len(s.segments) == 6 and s.outcome == 0.3 for s in whole)
    later = [s.segments[i].start for s in found for i in (3, 5) if len(s.segments) > i]
    assert later
    earlier = [s.segments[i - 2].end for s in found for i in (3, 5) if len(s.segments) > i]
    assert it.count("cached_prompt_tokens") > 0.9 * sum(earlier), "what was said before a turn is not computed again"


def test_a_later_turn_costs_what_is_new_in_it(actor: Opened) -> None:
    """The server's own word: the tokens of a request that it had in its cache."""
    engine = actor().engine
    said, known = np.arange(10, 110, dtype=np.int32), 0
    for _ in range(3):
        engine.submit(Request("e", (0,), said, Sampling(max_new_tokens=12)))
        (reply,) = drain(engine, 1)
        assert known <= reply.cached + 1 <= len(said), "all but the reply's last token, of which no key was needed"
        known = len(said) + len(reply.tokens)
        said = np.concatenate((said, reply.tokens, np.arange(200, 208, dtype=np.int32)))


@pytest.mark.parametrize("mode", ["retract", "abort"])
def test_new_weights_act_on_the_turn_that_is_under_way(
    log: Log, actor: Opened, policy: Policy, newer: Policy, tmp_path: Path, mode: str
) -> None:
    """Replies that were heard stay as they are, with their versions; nothing is sampled in a cache of older weights."""
    it = actor(mode, rounds=4)
    way, held, version, asked = Road(tmp_path, policy.path, it.engine.sinks[""]), (policy, newer), 0, 0

    def crossed() -> bool:
        if mode == "abort":
            return it.count("aborted", reason="update") > 2
        within = [
            x.start < v.start < x.end for s in samples(log) for x in s.segments for v in s.versions if x.trainable
        ]
        return sum(within) > 2

    deadline = time.monotonic() + HANG
    try:
        while not crossed():
            asked += 1
            ask(log, f"d-{asked}", size=16, stop=("0", "7"), max_new_tokens=40)
            heard, last = it.count("generated_tokens"), version + 2  # a third end in a row, and a reply would be kept
            while committed(log) < asked:
                it.worker.round()  # also while weights come: there is always a reply under way
                assert time.monotonic() < deadline, "no reply was under way"
                later = it.count("generated_tokens") > heard  # first replies come together, later ones each by itself
                if later and it.engine.room() <= 2 and version < last and way.publisher.wait(0):
                    version += 1
                    way.publisher.publish(version, held[version % 2].weights())
            assert way.publisher.wait(HANG)
    finally:
        way.close()
    several = [s for s in samples(log) if len({v.version for v in s.versions}) > 1 and len(s.segments) > 2]
    assert several, "an episode outlived an update"
    for s in samples(log):
        assert gaps(s, policy, newer).max() < 1e-4
        assert s.oldest_version == s.versions[0].version, "staleness is that of its oldest span"
        if mode == "abort":
            starts = [x.start for x in s.segments if x.trainable]
            assert all(v.start in starts for v in s.versions), "a reply is of one version"
