"""``headrace timeline`` on a log made by hand at known times: exactly the slices that follow from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from handmade import Handmade

from broker.errors import RunFault
from broker.messages import (
    Dropped,
    Evaluation,
    GroupRef,
    PolicyVersion,
    Position,
    SampleRef,
    StepResult,
    VersionSpan,
    VoteRef,
)
from headrace.__main__ import main
from headrace.commands.timeline import timeline

START = 1_700_000_000.0
PHASES = {"wait_data": 3.0, "publish": 0.5, "pack": 0.25, "forward_backward": 1.0, "optimizer": 0.25}  # as recorded
Events = list[dict[str, Any]]


class Clock:
    """What the log takes for the time."""

    now = START

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


class Timed(Handmade):
    """Writes records at chosen times, in seconds since the start."""

    def __init__(self, directory: Path, clock: Clock, retention: float = 0.0) -> None:
        super().__init__(directory, retention)
        self.clock = clock

    def at(self, seconds: float) -> Timed:
        self.clock.now = START + seconds
        return self

    def sampled(self, group_id: str, index: int, start: float, end: float, actor: str = "a", **more: Any) -> Position:
        spans = more.pop("versions", (VersionSpan(1, 2),))
        times = {"started": START + start, "created": START + end, "rewards": {"accuracy": 1.0}}
        return self.at(end + 0.05).sample(group_id, index, tokens=8, actor=actor, versions=spans, **times, **more)

    def judged(self, group_id: str, index: int, end: float, value: float, seconds: float = 0.5) -> tuple[VoteRef, ...]:
        at = self.at(end).vote(group_id, index, "accuracy", value=value, seconds=seconds, created=START + end)
        return (VoteRef("accuracy", at),)

    def step(self, number: int, seconds: float, *groups: GroupRef, **more: Any) -> None:
        """Its manifest half a second before its work begins, its result at ``seconds``."""
        self.at(seconds - 2.5).manifest(number, *groups, **more)
        result = StepResult(number, 1, number, {"reward_mean": 0.5, "grad_norm": float("nan")}, PHASES)
        self.at(seconds).write(self.topics.steps, result)


def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Timed]:
    """A log whose clock is the writer's."""
    clock = Clock()
    monkeypatch.setattr("broker.sqlite.topic.time", clock)
    made = Timed(tmp_path / "log", clock)
    made.run(tmp_path)
    yield made
    made.close()


@pytest.fixture
def hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Timed]:
    yield from timed(tmp_path, monkeypatch)


def two_steps(hand: Timed) -> None:
    """Step 2 ends at 10 s, step 3 at 14 s. Of its two samples one runs on while the other waits for it."""
    hand.at(0.0).manifest(1, stage=0, kind="weights", weights="checkpoints/base")
    for group_id in ("g@0", "lost@0", "late@0", "next@0"):
        hand.at(1.0).prompt(group_id)
    hand.at(1.0).prompt("q@mid", purpose="eval", collection="mid")
    first = hand.sampled("g@0", 0, 2.0, 4.0)
    second = hand.sampled("g@0", 1, 2.0, 6.0, versions=(VersionSpan(0, 2), VersionSpan(1, 4)))
    low, high = hand.judged("g@0", 0, 4.5, 0.0), hand.judged("g@0", 1, 7.0, 1.0)
    at = hand.prompts["g@0"]
    group = GroupRef("g@0", at, (SampleRef(0, first, low), SampleRef(1, second, high)))
    gone = (Dropped("lost@0", "incomplete", 0), Dropped("late@0", "stale", 0))
    hand.sampled("late@0", 0, 3.0, 5.0, actor="b")
    hand.step(2, 10.0, group, dropped=gone)
    hand.at(9.75).write(hand.topics.policy, PolicyVersion(2, "weights/2"))
    third = hand.sampled("next@0", 0, 9.0, 10.5, actor="b")
    votes = hand.judged("next@0", 0, 11.0, 1.0, seconds=0.0)
    hand.sampled("q@mid", 0, 6.0, 8.0, purpose="eval")
    hand.at(9.0).write(
        hand.topics.steps,
        Evaluation("mid", 2, 1, 1, 1, 1.0, (1.0, 1.0), 1.0, (1.0, 1.0), (1, 1), 8.0, ("q@mid",)),
    )
    hand.step(3, 14.0, GroupRef("next@0", hand.prompts["next@0"], (SampleRef(0, third, votes),)))


def drawn(hand: Timed, first: int, last: int) -> Events:
    trace = json.loads(timeline(hand.log, hand.topics, first, last))
    check(trace["traceEvents"])
    return list(trace["traceEvents"])


def rows(events: Events) -> dict[int, str]:
    return {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}


def slices(events: Events, row: str) -> list[tuple[str, float, float]]:
    """Name, start and end (in seconds since the trace begins) of a row's slices."""
    name = rows(events)
    found = [e for e in events if e["ph"] == "X" and name[e["pid"]] == row]
    return [(e["name"], e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6) for e in found]


def check(events: Events) -> None:
    """What every trace must be for a viewer: known phases, whole numbers, times that rise, slices that nest, arrows of two ends."""
    fields = {"X": {"dur", "cat"}, "M": set(), "i": {"s"}, "s": {"id", "cat"}, "f": {"id", "cat", "bp"}}
    open_ends: dict[tuple[int, int], list[int]] = {}
    arrows: dict[str, list[int]] = {"s": [], "f": []}
    times = [e["ts"] for e in events if e["ph"] != "M"]
    assert times == sorted(times)
    for event in events:
        assert fields[event["ph"]] | {"name", "ph", "ts", "pid", "tid"} <= event.keys() and event["name"]
        numbers = [event[k] for k in ("ts", "dur", "pid", "tid", "id") if k in event]
        assert all(type(n) is int and 0 <= n < 2**31 for n in numbers), event
        if event["ph"] == "X":
            stack = open_ends.setdefault((event["pid"], event["tid"]), [])
            while stack and stack[-1] <= event["ts"]:
                stack.pop()
            end = event["ts"] + event["dur"]
            assert not stack or end <= stack[-1], f"{event} overlaps what lies in its lane"
            stack.append(end)
        if event["ph"] in arrows:
            arrows[event["ph"]].append(event["id"])
            spans = [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (event["pid"], event["tid"])]
            assert any(e["ts"] <= event["ts"] <= e["ts"] + e["dur"] for e in spans), "an arrow hangs on a slice"
    assert sorted(arrows["s"]) == sorted(set(arrows["s"])) == sorted(arrows["f"])
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] != "M"} <= named


def test_every_slice_of_a_step_follows_from_the_log(hand: Timed) -> None:
    two_steps(hand)
    events = drawn(hand, 2, 2)  # the trace begins when the prompts came, at 1 s
    assert list(rows(events).values()) == [
        "learner", "prompts waiting for an actor", "actor a", "actor b", "rewarder accuracy", "samples waiting for the learner",
    ]  # fmt: skip
    assert slices(events, "learner") == [
        ("evaluation mid", 0.0, 8.0),
        ("step 2", 4.0, 9.0),
        ("wait_data", 4.0, 7.0),
        ("pack", 7.0, 7.25),
        ("forward_backward", 7.25, 8.25),
        ("optimizer", 8.25, 8.5),
        ("publish", 8.5, 9.0),
    ]
    assert sorted(slices(events, "prompts waiting for an actor")) == [
        ("queued", 0.0, 1.0), ("queued", 0.0, 1.0), ("queued (dropped: incomplete)", 0.0, 6.5),
        ("queued (dropped: stale)", 0.0, 2.0), ("queued (evaluation)", 0.0, 5.0),
    ]  # fmt: skip
    assert slices(events, "actor a") == [
        ("generated", 1.0, 5.0), ("generated", 1.0, 3.0), ("version 0", 1.0, 2.0), ("version 1", 2.0, 5.0),
        ("generated (evaluation)", 5.0, 7.0),
    ]  # fmt: skip
    assert slices(events, "actor b") == [
        ("generated (dropped: stale)", 2.0, 4.0), ("generated (another step)", 8.0, 9.5),
    ]  # fmt: skip
    assert slices(events, "rewarder accuracy") == [
        ("judged", 3.0, 3.5), ("judged", 5.5, 6.0), ("judged (another step)", 10.0, 10.0),
    ]  # fmt: skip
    assert slices(events, "samples waiting for the learner") == [
        ("waits for its group", 3.5, 6.0), ("waits for the step (dropped: stale)", 4.0, 6.5),
        ("waits for the step", 6.0, 7.0), ("waits for the step", 6.0, 7.0), ("trained", 7.0, 9.0), ("trained", 7.0, 9.0),
    ]  # fmt: skip


def test_a_slice_tells_what_it_was(hand: Timed) -> None:
    two_steps(hand)
    events = drawn(hand, 2, 2)
    (late,) = [e for e in events if e["name"] == "generated" and e["dur"] == 4_000_000]
    assert late["args"] == {
        "group": "g@0", "index": 1, "fate": "trained: step 2", "versions": "0+1", "tokens": 8, "reward": 1.0,
        "votes": {"accuracy": "1"},
    }  # fmt: skip
    (step,) = [e for e in events if e["name"] == "step 2"]
    assert step["args"] == {"stage": 1, "groups": 1, "reward_mean": 0.5}, "a number that is none is left out"
    instants = [(rows(events)[e["pid"]], e["name"], e["ts"]) for e in events if e["ph"] == "i"]
    assert sorted(instants) == [
        ("actor a", "first sample by version 0", 1_000_000), ("actor a", "first sample by version 1", 1_000_000),
        ("actor b", "first sample by version 1", 2_000_000), ("learner", "version 2 published", 8_750_000),
    ]  # fmt: skip
    starts = [e for e in events if e["ph"] == "s"]
    ends = [e for e in events if e["ph"] == "f"]
    assert len(starts) == len(ends) == 2, "one arrow from each sample that was trained"
    assert {e["ts"] for e in ends} == {7_000_000} and {e["pid"] for e in ends} == {step["pid"]}


def test_a_sample_that_nobody_could_judge_is_not_shown_as_trained(hand: Timed) -> None:
    hand.at(1.0).prompt("g@0")
    judged = hand.sampled("g@0", 0, 2.0, 4.0)
    votes = hand.judged("g@0", 0, 4.5, 1.0)
    hand.sampled("g@0", 1, 2.0, 5.0)
    hand.vote("g@0", 1, "accuracy", "error")
    hand.step(2, 10.0, GroupRef("g@0", hand.prompts["g@0"], (SampleRef(0, judged, votes),)))
    events = drawn(hand, 2, 2)
    assert [s[0] for s in slices(events, "actor a")] == ["generated (dropped: unjudged)", "generated"]
    assert [e["ph"] for e in events if e["ph"] in "sf"] == ["s", "f"], "one arrow, of the one that was trained"


def test_the_next_version_speaks_only_once_it_is_made(hand: Timed) -> None:
    hand.at(1.0).prompt("g@0")
    at = hand.sampled("g@0", 0, 2.0, 18.0, versions=(VersionSpan(1, 2), VersionSpan(2, 6)))
    votes = hand.judged("g@0", 0, 18.5, 1.0)
    one = hand.group("other@0")
    hand.step(2, 12.0, one)  # made at 11.5 s; half of its tokens would say 10 s
    hand.step(3, 24.0, GroupRef("g@0", hand.prompts["g@0"], (SampleRef(0, at, votes),)))
    spans = [s for s in slices(drawn(hand, 2, 3), "actor a") if s[0].startswith("version")]
    assert spans == [("version 1", 1.0, 10.5), ("version 2", 10.5, 17.0)]


def test_neither_a_redo_nor_wild_clocks_make_an_impossible_trace(hand: Timed) -> None:
    hand.at(1.0).prompt("g@0")
    at = hand.sampled("g@0", 0, 5.0, 4.0)  # began after it ended
    wild = hand.at(4.5).vote("g@0", 0, "accuracy", seconds=float("inf"), created=1e300)
    odd = hand.at(4.5).vote("g@0", 0, "format\n\x1b[31m", seconds=-7.0, created=float("nan"))
    votes = (VoteRef("accuracy", wild), VoteRef("format\n\x1b[31m", odd))
    hand.step(2, 8.0, GroupRef("g@0", hand.prompts["g@0"], (SampleRef(0, at, votes),)))
    hand.step(3, 8.25, hand.group("other@0"))  # it says that it took longer than there was time
    hand.at(9.0).write(hand.topics.steps, StepResult(3, 1, 3, {}, {"pack": float("nan"), "optimizer": 0.5}))
    events = drawn(hand, 2, 3)
    steps = [s for s in slices(events, "learner") if s[0].startswith("step")]
    assert steps == [("step 2", 2.0, 7.0), ("step 3", 7.5, 8.0)], "of a redo the last result holds"
    assert not [e for e in events if "\x1b" in json.dumps(e, ensure_ascii=False)]


def test_a_planned_step_and_lost_records_are_told(
    hand: Timed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_steps(hand)
    hand.at(15.0).manifest(4, hand.group("soon@0"))
    hand.log.trim(hand.topics.trajectories, hand.log.ends(hand.topics.trajectories))
    assert main(["timeline", str(tmp_path), "--steps", "2-4"]) == 0
    said = capsys.readouterr().out
    assert "2 steps" in said and "not executed yet: 1 steps" in said and "no longer in the log: 5 samples" in said
    trace = json.loads((tmp_path / "timeline.json").read_text())
    check(trace["traceEvents"])
    assert trace["otherData"]["planned"] == [2, 3, 4] and trace["otherData"]["executed"] == [2, 3]


def test_the_command_writes_where_it_is_told(hand: Timed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_steps(hand)
    out = tmp_path / "elsewhere.json"
    assert main(["timeline", str(tmp_path), "--steps", "3", "--out", str(out)]) == 0
    events = json.loads(out.read_text())["traceEvents"]
    assert [s[0] for s in slices(events, "learner") if s[0].startswith("step")] == ["step 3"]
    assert not (tmp_path / "timeline.json").exists()


@pytest.mark.parametrize("steps", ["", "0-2", "3-2", "a-b", "2-", "-2", "1-2-3", "²"])
def test_a_wrong_range_is_refused(hand: Timed, tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: str) -> None:
    assert main(["timeline", str(tmp_path), f"--steps={steps}"]) == 2
    assert f"--steps {steps!r}: write A-B with 1 <= A <= B" in capsys.readouterr().err


def test_steps_that_the_log_does_not_have_are_named(hand: Timed, tmp_path: Path) -> None:
    with pytest.raises(RunFault, match=r"has no step 2..3; it has none yet"):
        timeline(hand.log, hand.topics, 2, 3)
    two_steps(hand)
    with pytest.raises(RunFault, match=r"has no step 8..9; it has 2..3"):
        timeline(hand.log, hand.topics, 8, 9)
    assert main(["timeline", str(tmp_path), "--steps", "8-9"]) == 3
