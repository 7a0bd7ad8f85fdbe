"""A fork as people make one: two commands, and a ring of processes that goes on from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from patience import HANG
from ringtools import end_run, headrace, sets, start_run, verify
from runlog import said

pytestmark = [pytest.mark.processes, pytest.mark.slow]
SHORT = (
    "stage.0.steps=2",
    "stage.1.steps=4",
    "stage.1.eval_every=0",
    "stage.2.questions=4",
    "learner.checkpoint_every=2",
)


def finished(home: Path, *arguments: str, **file: Path) -> None:
    run = start_run(home, *arguments, **file)
    try:
        assert run.wait(HANG) == 0, said(home)
    finally:
        end_run(run)


def test_a_run_that_was_forked_by_command_goes_on_and_tells_where_it_comes_from(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    finished(old, *sets(*SHORT))
    made = headrace("fork", str(old), "--at", "3", "--dir", str(new), *sets("learner.optimizer.lr=1e-3"))
    assert made.returncode == 0, made.stderr
    assert f"start it: headrace run {new}/run.toml --dir {new}" in made.stdout
    finished(new, file=new / "run.toml")
    audit = verify(new)
    assert audit["forked_from"] == f"small at step 3 ({old})" and audit["steps"] == 2, audit
    told = headrace("trace", str(new), "4")
    assert told.returncode == 0 and f"of a run forked from small at step 3 ({old})" in told.stdout
    assert json.loads((new / "summary.json").read_text())["forked_from"]["step"] == 3
    assert "forked from" in (new / "report.html").read_text()
    assert not verify(old)["problem_count"] and not verify(old)["forked_from"]
