"""Evaluations that are asked for: of a run that goes on, and of what a run has left."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from ringtools import SMALL, by_role, end_run, headrace, sets, start_run, verify, wait_for
from runlog import messages, said

from broker.errors import RunFileError
from broker.messages import Evaluation
from broker.run import Run
from headrace.running.rundir import record
from learner.planning.requests import Asked, find, leave


@pytest.mark.timeout(300)
def test_a_run_is_evaluated_while_it_goes_on_and_afterwards(tmp_path: Path) -> None:
    ask = ("eval", str(tmp_path), "--data", "heldout", "--rewarder", "vowels", "--questions", "6", "--k", "3", "--json")
    settings = ("stage.1.steps=100000", "stage.1.eval_every=0", "learner.checkpoint_every=1000")
    run = start_run(tmp_path, *sets(*settings))
    try:
        wait_for("some steps", lambda: len(messages(tmp_path, "steps")) > 8 or run.poll() is not None, 120)
        done = headrace(*ask, "--name", "now")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.partition("\n")[2])
        assert (found["questions"], found["k"], found["name"]) == (6, 3, "now")
        assert 1 <= found["versions"][0] <= found["versions"][1] and found["step"] <= found["versions"][1]
        assert headrace(*ask, "--name", "now").returncode == 2, "a name is given once"

        leave(tmp_path, Asked(name="later", rewarder="vowels", questions=6))
        answered = leave(tmp_path, Asked(name="now", rewarder="vowels", questions=6))
        by_role(run, "learner")[
            0
        ].kill()  # what was asked for outlives the learner, also what it had answered just before
        wait_for("the answer", lambda: "later" in evaluations(tmp_path), 90)
        wait_for("its end", lambda: not (tmp_path / "evaluations" / "later.toml").exists(), 10)
        wait_for("the end of what was answered", lambda: not answered.exists(), 10)
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(30) == 130, said(tmp_path)
    finally:
        end_run(run)
    assert evaluations(tmp_path) == ["now", "later"]
    audit = verify(tmp_path)
    assert audit["evaluated"] == 12 and audit["problems"] == []

    done = headrace(*ask, "--name", "afterwards")
    assert done.returncode == 0, done.stderr
    assert '"name": "afterwards"' in done.stdout
    assert evaluations(tmp_path / "evaluations" / "afterwards") == ["afterwards"]


def evaluations(directory: Path) -> list[str]:
    return [m.name for m in messages(directory, "steps") if isinstance(m, Evaluation)]


def test_what_cannot_be_asked_for_is_refused(tmp_path: Path) -> None:
    record(Run.open(SMALL, [], tmp_path))
    for wrong, word in {
        ("--data", "heldot"): "did you mean 'heldout'",
        ("--rewarder", "vowel"): "did you mean 'vowels'",
        ("--questions", "0"): "questions = 0",
        ("--name", "a/b"): "name = 'a/b'",
    }.items():
        done = headrace("eval", str(tmp_path), "--rewarder", "vowels", *wrong)
        assert done.returncode == 2 and word in done.stderr, done.stderr
    done = headrace("eval", str(tmp_path), "--rewarder", "vowels")
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
