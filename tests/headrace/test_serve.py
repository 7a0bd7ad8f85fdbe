"""Agents outside, over HTTP, on a real actor: what they say and hear is in the log, token for token, whoever is killed in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from agentdoor import House, house, until, user
from safetensors.torch import load_file

from actors.local.engine import LocalEngine


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> LocalEngine:
    torch.set_num_threads(1)
    engine = LocalEngine(str(tiny_model), slots=8, context=256, seed=1)
    engine.apply(4, load_file(tiny_model / "model.safetensors"))
    return engine


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path, engine: LocalEngine) -> Iterator[House]:
    with house(tmp_path, tiny_model, engine, "idle = 600", "--patience", "5") as made:
        made.start_door()
        made.start_actor()
        yield made


def message(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["choices"][0]["message"]
    return found


def test_a_session_of_two_turns_is_one_episode_of_what_was_sampled(run: House, engine: LocalEngine) -> None:
    run.feed("t-1")
    talk = [{"role": "system", "content": "Be brief."}, user("Guess: 0 to 9")]
    first = run.chat(talk, "s1")
    talk += [message(first), user("5 to 9")]
    second = run.chat(talk, "s1").json()
    assert first.headers["X-Headrace-Session"] == "s1" and second["headrace"] == {"session": "s1", "version": 4}
    done = run.post("/v1/headrace/sessions/s1/reward", {"reward": 0.5, "why": "half right"}).json()
    assert done["ended"] == "rewarded" and done["votes"] == [{"group_id": "t-1@0", "index": 0}]
    (sample,) = until(run.samples).values()
    assert (sample.session, sample.environment, sample.outcome) == ("s1", "agents", None)
    said = [m["content"] for m in (*talk, second["choices"][0]["message"])]
    assert [m.content for m in sample.turns] == said
    assert [s.role for s in sample.segments] == ["prompt", "assistant", "user", "assistant"]
    assert second["usage"]["completion_tokens"] == sample.segments[-1].end - sample.segments[-1].start
    assert "(what" not in engine.tokenizer.decode(sample.tokens), "the agent's messages stand instead of the prompt's"
    (vote,) = run.votes()
    assert (vote.group_id, vote.index, vote.rewarder, vote.value, vote.why) == ("t-1@0", 0, "agent", 0.5, "half right")
