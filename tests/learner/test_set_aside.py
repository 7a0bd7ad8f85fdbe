"""A step that cannot be executed is set aside, by a learner that starts too. It is tried again on the command line, once its cause is
mended: the same samples, trained after all, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ring import Ring, ring
from ringtools import answer_of

from broker.errors import RunFault
from broker.messages import DeadLetter, Manifest
from headrace.running.rundir import reopen
from learner.replay import replay

SHORT = ("stage.0.steps=2", "stage.1.steps=8", "stage.1.eval_every=0", "stage.2.questions=4")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The steps whose groups the model cannot take; a test changes them."""
    from learner.training import executor

    taken, steps = executor.train_step, {3}

    def take(state: object, groups: object, *rest: object) -> object:
        if state.step + 1 in steps:  # type: ignore[attr-defined]
            raise ValueError("a sequence of 300 tokens is too long for the window of 256")
        return taken(state, groups, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(executor, "train_step", take)
    return steps


def listed(directory: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(answer_of("broker", "dlq", "list", str(directory), "--json").stdout)
    return found


def at_version(made: Ring, version: int, then: object) -> None:
    def published(now: int) -> None:
        if now == version:
            then()  # type: ignore[operator]

    made.on_publish = published


def retry(directory: Path) -> None:
    (letter,) = [row for row in listed(directory) if str(row["from"]).startswith("small.steps")]
    assert "too long for the window" in str(letter["error"])
    done = answer_of("broker", "dlq", "replay", str(directory), str(letter["offset"]))
    assert done.returncode == 0 and "trained again by the next step of its stage" in done.stdout


@pytest.mark.long
def test_the_command_has_it_trained_by_the_next_step_and_the_audit_knows(tmp_path: Path, failing: set[int]) -> None:
    home = tmp_path / "run"
    with ring(home, *SHORT, "learner.checkpoint_every=4") as made:

        def mended() -> None:
            failing.clear()
            retry(home)

        at_version(made, 4, mended)
        assert made.run()
        steps = made.steps()
        (again,) = [m for m in steps if m.again]
        (first,) = [m for m in steps if m.step == 3]
        assert (again.again, again.groups) == (3, first.groups) and again.step > 4
        assert again.step in {r.step for r in made.results()}
        audit = made.verify()
        assert (audit.problems, audit.outstanding, audit.dropped_by_reason.get("set_aside")) == ([], 0, None)
        assert audit.trained == 4 * 7, "step 3 has trained nothing, and its groups were trained by a later one"
        told = json.loads(answer_of("trace", str(home), str(again.step), "--json").stdout)
        assert told["again"] == 3
        whole = made.newest_sha256()
        last = steps[-1].step
    failing.add(3)  # a replay executes what was executed
    assert replay(reopen(home), 2, last, tmp_path / "again", None) == whole
    assert listed(home) == [], "the letter is dealt with"


@pytest.mark.long
def test_a_learner_that_is_killed_behind_the_request_takes_it_up_and_tries_once(
    tmp_path: Path, failing: set[int]
) -> None:
    home = tmp_path / "run"
    with ring(home, *SHORT, "learner.checkpoint_every=1000") as made:

        def killed() -> None:
            made.on_publish = lambda version: None
            retry(home)
            made.kill()

        at_version(made, 5, killed)
        made.killed()
        failing.clear()
        asked = [m for m in made.records("deadletters", DeadLetter) if m.topic == made.run_of.topics.steps]
        assert made.run()
        assert len([m for m in made.steps() if m.again]) == 1
        assert answer_of("broker", "dlq", "replay", str(home), "0").returncode == 0, "a second time changes nothing"
        audit = made.verify()
        assert (audit.problems, audit.outstanding, len(asked)) == ([], 0, 1)
        assert [m.step for m in made.records("steps", Manifest) if m.kind == "set_aside"] == [3]


@pytest.mark.long
def test_a_second_try_that_fails_too_is_set_aside_again(tmp_path: Path, failing: set[int]) -> None:
    home = tmp_path / "run"
    with ring(home, *SHORT, "learner.checkpoint_every=4") as made:

        def still_ill() -> None:
            made.on_publish = lambda version: None
            failing.update({6, 7})
            retry(home)

        at_version(made, 5, still_ill)
        assert made.run()
        audit = made.verify()
        assert (audit.problems, audit.outstanding) == ([], 0)
        marks = [m.step for m in made.records("steps", Manifest) if m.kind == "set_aside"]
        assert audit.dropped_by_reason["set_aside"] == 4 * (len(marks) - 1) and len(marks) == 3


def end_at(made: Ring, version: int, end: object) -> None:
    """End the learner when it holds ``version`` and the manifest after that is in the log."""

    def planned() -> None:
        made.on_publish = lambda version: None
        while made.steps()[-1].step == version:
            assert made.learner is not None
            made.round()
            made.learner.planning.round(0.0)
        end()  # type: ignore[operator]

    at_version(made, version, planned)


@pytest.mark.long
@pytest.mark.parametrize("killed", [True, False])
def test_a_learner_that_starts_sets_aside_what_was_planned_and_cannot_be_executed(
    tmp_path: Path, failing: set[int], killed: bool
) -> None:
    failing.clear()
    with ring(tmp_path, *SHORT, "learner.checkpoint_every=1000") as made:
        if killed:
            end_at(made, 3, made.kill)
            made.killed()
        else:
            end_at(made, 3, lambda: made.stop.set())
            assert not made.run()
        failing.add(4)
        assert made.run()
        marks = [m for m in made.records("steps", Manifest) if m.kind == "set_aside"]
        assert [m.step for m in marks] == [4] and "too long for the window" in marks[0].why
        assert {r.step for r in made.results() if r.stage == 1} == {2, 3, 5, 6, 7, 8, 9}
        assert [m.step for m in made.steps()] == list(range(2, 10))
        (letter,) = [m for m in made.records("deadletters", DeadLetter) if m.topic == made.run_of.topics.steps]
        assert made.positions("steps")[letter.offset][1] == made.steps()[2], "the manifest of step 4"
        audit = made.verify()
        assert (audit.problems, audit.outstanding, audit.dropped_by_reason) == ([], 0, {"set_aside": 4})


@pytest.mark.long
def test_what_was_trained_once_is_never_set_aside(tmp_path: Path, failing: set[int]) -> None:
    failing.clear()
    with ring(tmp_path, *SHORT, "learner.checkpoint_every=1000") as made:
        made.kill_at(6)
        made.killed()
        failing.add(4)
        with pytest.raises(ValueError, match="too long for the window"):
            made.run()
        failing.clear()
        assert made.run()
        assert not [m for m in made.records("steps", Manifest) if m.kind == "set_aside"]
        assert made.verify().trained == 4 * 8


@pytest.mark.long
def test_a_learner_that_starts_and_can_execute_nothing_ends_with_the_reason(tmp_path: Path, failing: set[int]) -> None:
    failing.clear()
    with ring(tmp_path, *SHORT, "learner.checkpoint_every=1000") as made:
        end_at(made, 3, made.kill)
        made.killed()
        failing.update(range(4, 100))
        with pytest.raises(RunFault, match=r"3 steps .* could not be executed"):
            made.run()
        assert [m.step for m in made.records("steps", Manifest) if m.kind == "set_aside"] == [4, 5, 6]
