"""A run whose model changes its size on the way, with real processes: the weights of the student reach the actor that served its teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
from patience import HANG
from ringtools import end_run, small_copy, start_run, verify

from broker.messages import Evaluation, Manifest
from headrace.reading.records import scan
from headrace.running.rundir import reopen

pytestmark = [pytest.mark.processes, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]

STAGES = f"""
[[stage]]
kind = "evaluate"
name = "teacher"
questions = 4
rewarder = "vowels"

[[stage]]
kind = "sft"
name = "student"
init = "random"
model = "{ROOT}/recipes/tiny_student_m"
data = "corpus"
steps = 1
documents_per_step = 2

[[stage]]
kind = "evaluate"
name = "student-scores"
questions = 4
rewarder = "vowels"

[[stage]]
kind = "evaluate"
name = "teacher-again"
model = "base"
questions = 4
rewarder = "vowels"
"""


def test_actors_follow_a_model_of_another_size_and_back(tmp_path: Path) -> None:
    file = small_copy(tmp_path)
    text = file.read_text()
    file.write_text(text[: text.index('[[stage]]\nkind = "rl"')] + STAGES)
    home = tmp_path / "run"
    run = start_run(home, "--set", "stage.0.steps=1", file=file)
    try:
        assert run.wait(timeout=HANG) == 0, (home / "run.out").read_text()
    finally:
        end_run(run)
    assert verify(home)["problems"] == []
    opened = reopen(home)
    log = opened.open_log()
    steps = [message for _, message in scan(log, opened.topics.steps)]
    log.close()
    asked = {m.name: m for m in steps if isinstance(m, Evaluation)}
    assert set(asked) == {"teacher", "student-scores", "teacher-again"}
    assert all(e.questions == 4 for e in asked.values())
    weights = [m.weights for m in steps if isinstance(m, Manifest) and m.kind == "weights"]
    assert weights[-3:] == [
        f"random:5:{ROOT}/recipes/tiny_student_m",
        "checkpoints/stage-2-student",
        "checkpoints/stage-0-base",
    ]
    assert asked["student-scores"].versions[0] > asked["teacher"].versions[1], "nobody answered with the old weights"
