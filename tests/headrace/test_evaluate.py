"""Evaluations that are asked for: of a run that goes on, and of what a run has left."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from patience import HANG
from prometheus_client import CollectorRegistry
from ringtools import SMALL, answer_of, headrace, old_run
from runlog import messages

from broker.errors import RunFileError
from broker.messages import Evaluation, encode
from broker.run import Run, announced
from headrace.commands.evaluate import separate
from headrace.running.rundir import record
from learner.planning.requests import Asked, find, leave, place


def write_result(run: Run, name: str) -> None:
    """As the learner of ``run`` would."""
    log = run.open_log()
    producer = log.producer()
    made = Evaluation(name, 3, 0, 4, 1, 0.5, (0.2, 0.8), 0.5, (0.2, 0.8), (3, 3), 8.0, created=time.time())
    producer.send(run.topics.steps, name.encode(), encode(made))
    producer.flush()
    producer.close()
    log.close()


def test_a_name_whose_result_is_there_is_refused_also_where_no_run_lives(tmp_path: Path) -> None:
    run = Run.open(SMALL, [], tmp_path / "run")
    record(run)
    made = separate(run, Asked(name="first", rewarder="vowels"), str(tmp_path))
    record(made)
    write_result(made, "first")
    (made.directory / "finished").touch()
    done = answer_of("eval", str(run.directory), "--rewarder", "vowels", "--name", "first", "--model", str(tmp_path))
    assert done.returncode == 2 and not done.stdout
    assert "--name 'first' is the name of an evaluation in the log already; use another" in done.stderr


def test_with_json_nothing_but_json_is_printed(tmp_path: Path) -> None:
    run = Run.open(SMALL, [], tmp_path)
    record(run)
    request = place(tmp_path, "now")

    def learn() -> None:
        while not request.exists():
            assert time.monotonic() < deadline, "nobody has asked"
            time.sleep(0.01)
        write_result(run, "now")
        request.unlink()

    deadline = time.monotonic() + HANG
    learner = threading.Thread(target=learn)
    learner.start()
    with announced(run, "learner-0", "learner", CollectorRegistry()):
        done = answer_of("eval", str(tmp_path), "--rewarder", "vowels", "--name", "now", "--json")
    learner.join()
    assert done.returncode == 0 and "asked the learner" in done.stderr
    assert json.loads(done.stdout)["pass_at_1"] == 0.5


@pytest.mark.processes
@pytest.mark.slow
def test_the_newest_checkpoint_of_a_run_that_is_over_is_evaluated(tmp_path: Path) -> None:
    """Also of a run of an older version: its daemons, on a log of the evaluation's own."""
    run = old_run(tmp_path)
    done = headrace(
        "eval", str(run), "--rewarder", "vowels", "--questions", "4", "--k", "2", "--json", "--name", "afterwards"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "afterwards", "progress goes to stderr"
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
