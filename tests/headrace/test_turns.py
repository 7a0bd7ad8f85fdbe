"""Trace, timeline and report show an episode turn by turn: who said what, what of it is trained, and what its environment took."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_timeline import START, Timed, timed

from broker.messages import (
    ChatMessage,
    GroupRef,
    Reply,
    SampleRef,
    Sampling,
    Segment,
    Trajectory,
    VersionSpan,
)
from headrace.__main__ import main
from headrace.commands.timeline import timeline
from headrace.reading.history import History, whole
from headrace.reading.showcase import showcase
from headrace.reading.trace import trace
from headrace.reading.turns import spoken
from monitoring.report.samples import sample_list

SEGMENTS = (
    Segment("prompt", 0, 3, False), Segment("assistant", 3, 5, True), Segment("user", 5, 8, False), Segment("assistant", 8, 9, True),
)  # fmt: skip
TURNS = tuple(ChatMessage(*t) for t in [("user", "0 to 9?"), ("assistant", "4"), ("user", "5 to 9"), ("assistant", "<7>")])  # fmt: skip
REPLIES = (Reply(1, START + 2.0, START + 2.5, 1.25, -0.5), Reply(3, START + 4.0, START + 4.25, 0.5))


def episode(**changes: Any) -> Trajectory:
    made = Trajectory(
        "g@0", 0, 2, (ChatMessage("user", "Guess."),), "7", "", {}, {"accuracy": 1.0}, "train", "<7>", np.arange(9, dtype=np.int32),
        -np.array([0, 0, 0, 0.5, 0.5, 0, 0, 0, 1], np.float32), SEGMENTS, (VersionSpan(0, 3), VersionSpan(1, 4)), "stop", Sampling(),
        "local/1", "a", START + 5.0, START + 2.0, "game", TURNS, 1.0, replies=REPLIES, opening=0.75, why="found",
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture
def hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Timed]:
    yield from timed(tmp_path, monkeypatch)


def one_step(hand: Timed) -> None:
    """Step 2 trains a group of an episode and of a single answer."""
    hand.at(0.0).manifest(1, stage=0, kind="weights", weights="checkpoints/base")
    at = hand.at(1.0).prompt("g@0")
    first = hand.at(5.05).write(hand.topics.trajectories, episode())
    second = hand.sampled("g@0", 1, 2.0, 4.0)
    votes = [hand.judged("g@0", index, 6.0, float(1 - index)) for index in range(2)]
    hand.step(2, 10.0, GroupRef("g@0", at, (SampleRef(0, first, votes[0]), SampleRef(1, second, votes[1]))))


def test_an_episode_is_told_turn_by_turn() -> None:
    prompt, first, said, last = spoken(episode())
    assert (prompt.role, prompt.text, prompt.tokens, prompt.trained) == ("prompt, user", "0 to 9?", 3, False)
    assert (first.text, first.trained, first.versions, first.value) == ("4", True, (0, 1), -0.5)
    assert (said.role, said.text, said.tokens, said.seconds, prompt.seconds) == ("user", "5 to 9", 3, 1.25, 0.75)
    assert (last.text, last.versions, last.tokens) == ("<7>", (1,), 1)


def test_records_that_know_no_times_are_told_as_well() -> None:
    plain = spoken(episode(replies=(), opening=0.0))
    assert [(s.role, s.text, s.started) for s in plain] == [
        ("prompt, user", "0 to 9?", 0.0), ("assistant", "4", 0.0), ("user", "5 to 9", 0.0), ("assistant", "<7>", 0.0),
    ]  # fmt: skip
    foreign = spoken(episode(replies=(), turns=()))
    assert [(s.role, s.text, s.tokens) for s in foreign] == [(s.role, "", s.end - s.start) for s in SEGMENTS]
    assert spoken(episode(environment="", turns=(), replies=())) == []


def test_a_trace_has_a_line_a_turn(hand: Timed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_step(hand)
    first, second = trace(hand.log, hand.topics, 2)["groups"][0]["samples"]
    json.dumps(first)
    assert [(t["role"], t["trained"]) for t in first["turns"]][1:] == [("assistant", True), ("user", False), ("assistant", True)]  # fmt: skip
    assert "turns" not in second and "environment" not in second
    assert main(["trace", str(tmp_path), "2"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for wanted in (
        "prompt, user 3 tokens, said after 0.75 s 0 to 9?",
        "assistant 2 tokens trained, version 0+1, sampled in 0.5 s, worth -0.5 4",
        "user 3 tokens, said after 1.25 s 5 to 9",
        "assistant 1 tokens trained, version 1, sampled in 0.25 s <7>",
        "game: outcome 1, said after 0.5 s, ended by stop: found",
    ):
        assert wanted in lines


def test_a_timeline_lays_replies_and_the_environments_answers_below_the_sample(hand: Timed) -> None:
    one_step(hand)
    drawn = json.loads(timeline(hand.log, hand.topics, 2, 2))
    origin = drawn["otherData"]["origin"]
    shown = [
        (e["name"], origin + e["ts"] / 1e6 - START, e["dur"] / 1e6, e["args"].get("text"))
        for e in drawn["traceEvents"]
        if e["ph"] == "X" and e["cat"] in ("turn", "environment")
    ]
    wanted = [
        ("reply", 2.0, 0.5, "4"), ("environment", 2.5, 1.25, "5 to 9"), ("reply", 4.0, 0.25, "<7>"),
        ("environment", 4.25, 0.5, "outcome 1, said after 0.5 s, ended by stop: found"),
    ]  # fmt: skip
    assert [s[0] for s in shown] == [w[0] for w in wanted] and [s[3] for s in shown] == [w[3] for w in wanted]
    for found, exact in zip(shown, wanted, strict=True):
        assert found[1:3] == pytest.approx(exact[1:3], abs=1e-4)


def test_a_report_shows_an_episode_and_hostile_text_stays_text(hand: Timed) -> None:
    one_step(hand)
    steps = History.of(hand.log, hand.topics).steps
    samples = showcase(hand.log, hand.topics, list(whole(hand.log, hand.topics, steps)))
    page = sample_list(samples)
    assert page.count("<h3>Episode</h3>") == 1 and page.count("<h3>Response</h3>") == 1
    assert "&lt;7&gt;" in page and "<7>" not in page and "5 to 9" in page
    assert "2 tokens trained, version 0+1" in page and "outcome 1, said after 0.5 s, ended by stop: found" in page
    long = replace(samples[0], turns=[("user", f"turn {n}.", "") for n in range(100)])
    page = sample_list([long])
    assert "76 more turns" in page and "turn 11." in page and "turn 12." not in page and "turn 88." in page
