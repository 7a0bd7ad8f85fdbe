"""What changes in the course of a stage: which phases it has, what each step asks, and what of it is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ringtools import small_copy

from broker.errors import RunFileError
from broker.messages import Sampling
from broker.runfile import RunFile, parse
from headrace.preflight.settings import rewards, sampling
from headrace.preflight.subject import Subject
from headrace.running.runfile import check
from learner.data.sums import SignedSums
from learner.planning.feed import Ask, Feed, Feeding, Schedule
from learner.planning.plans import StagePlan
from learner.stages.rl import RlStage
from learner.tables import SamplingTable, Training


def stage(**keys: Any) -> RlStage:
    return parse({"kind": "rl", "name": "rl", "steps": 100, **keys}, RlStage, "[[stage]] rl")


def test_each_phase_keeps_what_it_does_not_change() -> None:
    found = stage(
        data={"math": 3, "code": 1}, rewards={"math": {"accuracy": 1.0}},
        later=[
            {"from_step": 50, "max_new_tokens": 200},
            {"last_steps": 20, "data": {"math": 1, "general": 1}, "rewards": {"general": {"judge": 1.0}}, "temperature": 0.7},
        ],
    ).phases(SamplingTable(max_new_tokens=100))  # fmt: skip
    assert [(p.begins, p.weights) for p in found] == [
        (0, {"math": 3.0, "code": 1.0}), (50, {"math": 3.0, "code": 1.0}), (80, {"math": 1.0, "general": 1.0}),
    ]  # fmt: skip
    assert [(p.sampling.max_new_tokens, p.sampling.temperature) for p in found] == [(100, 1.0), (200, 1.0), (200, 0.7)]
    assert found[1].rewards == {"math": {"accuracy": 1.0}}
    assert found[2].rewards == {"math": {"accuracy": 1.0}, "general": {"judge": 1.0}}
    assert stage(data="math").phases(SamplingTable())[0].weights == {"math": 1.0}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"later": [{"max_new_tokens": 9}]}, "needs either from_step or last_steps"),
        ({"later": [{"from_step": 9, "last_steps": 9}]}, "needs either from_step or last_steps"),
        ({"later": [{"from_step": 100}]}, "begins behind steps 100 of 100"),
        ({"later": [{"last_steps": 100}]}, "begins behind steps 0 of 100"),
        ({"later": [{"from_step": 60}, {"last_steps": 50}]}, "begins behind steps 60, 50 of 100"),
        ({"later": [{"from_step": 60}, {"last_steps": 40}]}, "begins behind steps 60, 60 of 100"),
        (
            {"rewards": {"other": {"accuracy": 1.0}}},
            "rewards names 'other', which the stage does not ask; it asks prompts",
        ),
        ({"later": [{"from_step": 60, "max_tokens": 3}]}, "max_tokens"),
    ],
)
def test_phases_that_never_begin_or_name_nobody_are_refused(keys: Any, told: str) -> None:
    with pytest.raises(RunFileError, match=told):
        stage(**keys)


def feeding(name: str, weight: float = 1.0) -> Feeding:
    ask = Ask(2, {"r": 1.0}, Sampling())
    return Feeding(Schedule(name, SignedSums(seed=len(name)), 0), ask, weight)


def test_each_step_asks_in_the_way_of_its_phase() -> None:
    one, two, three = (feeding(name) for name in ("a", "bb", "ccc"))
    plan = StagePlan(0, Training(), (one,), 30, ((10, (one, two)), (20, (three,))))
    assert [plan.asked_for(step) for step in (1, 10, 11, 20, 21, 30)] == [
        (one,), (one,), (one, two), (one, two), (three,), (three,),
    ]  # fmt: skip
    assert plan.sources == (one, one, two, three)
    mixed = plan.mixed({"r": 1.0}, {"q": 2.0})
    assert {tuple(f.ask.rewards) for f in mixed.sources} == {("q",)} and plan.mixed({}, {"q": 1.0}) == plan


def test_a_source_that_joins_later_takes_its_share_alone() -> None:
    old, new = feeding("old", 3.0), feeding("new", 1.0)
    feed = Feed(None, "prompts", 1, {"old": 1000, "new": 0})  # type: ignore[arg-type]
    asked = Counter(q.feeding.schedule.name for q in feed.next_questions((old, new), [0] * 16))
    assert asked == {"old": 12, "new": 4}, "it does not catch up with a thousand prompts"
    assert feed.cursor == {"old": 1012, "new": 4}


def test_mixes_of_a_stage_are_looked_at_before_the_run(tmp_path: Path) -> None:
    file = small_copy(tmp_path)
    own = ["stage.1.rewards={prompts={vowels=0.5}}", "data.heldout.rewards={vowels=1.0}"]
    assert not [f for f in rewards(Subject(check(RunFile.read(file, own)))) if f.level != "note"]
    strange = check(RunFile.read(file, ["stage.1.rewards={prompts={vowls=0.5}}"]))
    assert any("names 'vowls'" in f.what and "rewards" in f.where for f in rewards(Subject(strange)))
    long = check(RunFile.read(file, ["stage.1.later=[{from_step=3, max_new_tokens=500}]"]))
    assert any("max_new_tokens = 500 leaves no room" in f.what for f in sampling(Subject(long)))
    with pytest.raises(RunFileError, match=r"later\.0\.data\.nowhere = 'nowhere' is not in \[data\]"):
        check(RunFile.read(file, ["stage.1.later=[{from_step=3, data={nowhere=1}}]"]))
