"""Evaluations that are asked for: of a run that goes on, and of what a run has left."""

from __future__ import annotations

from pathlib import Path

import pytest
from ringtools import SMALL, answer_of, headrace, old_run
from runlog import messages

from broker.errors import RunFileError
from broker.messages import Evaluation
from broker.run import Run
from headrace.running.rundir import record
from learner.planning.requests import Asked, find, leave


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_newest_checkpoint_of_a_run_that_is_over_is_evaluated(tmp_path: Path) -> None:
    """Also of a run of an older version: its daemons, on a log of the evaluation's own."""
    run = old_run(tmp_path)
    done = headrace(
        "eval", str(run), "--rewarder", "vowels", "--questions", "4", "--k", "2", "--json", "--name", "afterwards"
    )
    assert done.returncode == 0, done.stderr
    assert '"name": "afterwards"' in done.stdout
    made = [m.name for m in messages(run / "evaluations" / "afterwards", "steps") if isinstance(m, Evaluation)]
    assert made == ["afterwards"]


def test_what_cannot_be_asked_for_is_refused(tmp_path: Path) -> None:
    record(Run.open(SMALL, [], tmp_path))
    for wrong, word in {
        ("--data", "heldot"): "did you mean 'heldout'",
        ("--rewarder", "vowel"): "did you mean 'vowels'",
        ("--questions", "0"): "questions = 0",
        ("--name", "a/b"): "name = 'a/b'",
    }.items():
        done = answer_of("eval", str(tmp_path), "--rewarder", "vowels", *wrong)
        assert done.returncode == 2 and word in done.stderr, done.stderr
    done = answer_of("eval", str(tmp_path), "--rewarder", "vowels")
    assert done.returncode == 2 and "--model" in done.stderr, "there is nothing to evaluate yet"


def test_a_request_lies_there_once_and_a_damaged_one_is_put_aside(tmp_path: Path) -> None:
    path = leave(tmp_path, Asked(name="a"))
    with pytest.raises(RunFileError, match="asked for already"):
        leave(tmp_path, Asked(name="a"))
    path.with_name("b.toml").write_text("name = ")
    path.with_name("c.toml").write_text('name = "c"\nquestion = 3')
    assert [asked.name for asked in find(tmp_path, ())] == ["a"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.toml", "b.refused", "c.refused"]
    assert list(find(tmp_path, {"a"})) == []
