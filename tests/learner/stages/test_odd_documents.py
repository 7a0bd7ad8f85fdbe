"""Supervised stages go on without odd rows: buried, counted, left out again after a kill, and read again once they are mended and replayed."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ring import Ring, ring
from ringtools import answer_of, small_copy

from broker.errors import DataError
from broker.messages import DeadLetter, StepResult
from broker.runfile import RunFile
from headrace.doctor.groups import odd_rows
from headrace.preflight import lengths, rows
from headrace.preflight.findings import Finding
from headrace.preflight.subject import Subject
from headrace.running.runfile import check
from learner.learner import Learner

GOOD = [{"prompt": f"{n}+1?", "response": f"{n + 1}"} for n in range(24)]
ODD = {5: {"prompt": "5+1?", "response": 6}, 13: {"prompt": "13+1?"}}


def table(path: Path, odd: dict[int, Any]) -> Path:
    rows = [odd.get(n, row) for n, row in enumerate(GOOD)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One supervised stage of 6 steps of 4 documents: a pass over 24 rows, two of which are odd."""
    table(tmp_path / "rows.jsonl", ODD)
    made = small_copy(tmp_path)
    text = made.read_text()
    text = text[: text.index('[[stage]]\nkind = "rl"')].replace(
        'corpus = { use = "learner.data.sums:SumsCorpus" }', 'corpus = { path = "rows.jsonl" }'
    )
    made.write_text(text)
    return made


def letters(made: Ring) -> list[DeadLetter]:
    return list(made.records("deadletters", DeadLetter))


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, then: Any) -> None:
    """Do ``then`` once, when the supervised stage has taken this step."""
    taken, done = Learner.progress_in_stage, []

    def progress(self: Learner, index: int, report: Any) -> None:
        taken(self, index, report)
        if report.stage_step == step and not done:
            done.append(step)
            then()

    monkeypatch.setattr(Learner, "progress_in_stage", progress)


def finished(directory: Path, file: Path) -> str:
    with ring(directory, file=file) as made:
        assert made.run()
        return made.newest_sha256()


def test_the_odd_rows_are_buried_and_counted_and_the_others_trained(
    tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "run"
    with ring(home, file=file) as made, caplog.at_level(logging.WARNING, "learner"):
        assert made.run()
        found = letters(made)
        assert [(x.topic, x.offset) for x in found] == [("data.corpus", 5), ("data.corpus", 13)]
        assert "rows.jsonl row 5 column 'response' is a int: '6'" in found[0].error
        assert "rows.jsonl row 13 has no column 'response'" in found[1].error
        last = made.records("steps", StepResult)[-1]
        assert last.stage_step == 6 and last.metrics["odd_documents"] == 2
        assert any("cannot be trained on and lie in the dead letters" in r.message for r in caplog.records)
        audit = made.verify()
        assert (audit.problems, audit.dead_letters) == ([], 2)
    listed = json.loads(answer_of("broker", "dlq", "list", str(home), "--json").stdout)
    assert [row["from"] for row in listed] == ["data.corpus[0] 5", "data.corpus[0] 13"]
    assert "row 5 column 'response'" in listed[0]["error"]


@pytest.mark.long
def test_after_a_kill_the_same_documents_are_left_out_and_none_is_buried_twice(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = finished(tmp_path / "whole", file)
    with ring(tmp_path / "run", file=file) as made:
        at_step(monkeypatch, 5, made.kill)  # behind the checkpoint of step 3: steps 4 and 5 are done again
        made.killed()
        assert len(letters(made)) == 2
        table(tmp_path / "rows.jsonl", {})  # mended in the meantime: what was left out of a step stays so
        assert made.run() and len(letters(made)) == 2
        assert made.newest_sha256() == wanted


@pytest.mark.slow
def test_a_mended_row_whose_letter_is_replayed_joins_the_next_step_for_good(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without = finished(tmp_path / "without", file)
    table(tmp_path / "rows.jsonl", ODD)
    home = tmp_path / "run"

    def mend() -> None:
        table(tmp_path / "rows.jsonl", {13: ODD[13]})
        assert answer_of("broker", "dlq", "replay", str(home), "0").returncode == 0

    with ring(home, file=file) as made:
        at_step(monkeypatch, 4, mend)
        with caplog.at_level(logging.INFO, "learner"):
            assert made.run()
        assert any("document 5 was left out, and is read again" in r.message for r in caplog.records)
        whole = made.newest_sha256()
        assert whole != without
    table(tmp_path / "rows.jsonl", ODD)
    with ring(home.with_name("killed"), file=file) as made:
        home = made.directory
        at_step(monkeypatch, 4, mend)
        at_step(monkeypatch, 5, made.kill)
        made.killed()
        assert made.run() and made.newest_sha256() == whole


def test_a_file_of_odd_rows_is_refused_and_a_mended_one_goes_on(tmp_path: Path, file: Path) -> None:
    many = {n: {"prompt": "x"} for n in range(13, 24)}
    table(tmp_path / "rows.jsonl", many)
    with ring(tmp_path / "run", file=file) as made:
        with pytest.raises(
            DataError, match=r"\[data.corpus\] 3 of 16 rows cannot be trained on.*row 15 has no column 'response'"
        ):
            made.run()
        assert not letters(made), "none of a step that never was is buried"
        table(tmp_path / "rows.jsonl", {})
        assert made.run() and made.records("steps", StepResult)[-1].metrics["odd_documents"] == 0


def test_a_step_of_odd_documents_alone_changes_nothing(tmp_path: Path, file: Path) -> None:
    settings = ("stage.0.documents_per_step=1", "stage.0.steps=24", "stage.0.checkpoint_every=100")
    with ring(tmp_path / "run", *settings, file=file) as made:
        assert made.run() and len(letters(made)) == 2


def findings(file: Path, *settings: str) -> list[Finding]:
    subject = Subject(check(RunFile.read(file, settings)))
    return [*rows.readable(subject), *rows.columns(subject), *lengths.documents(subject)]


def test_a_plan_warns_of_single_odd_rows_and_refuses_a_file_of_them(tmp_path: Path, file: Path) -> None:
    (few,) = findings(file)
    assert few.level == "warning" and "2 of 24 (8.33%)" in few.what and "the others are trained on" in few.cure
    (strict,) = findings(file, "stage.0.max_odd=0.05")
    assert strict.level == "error"
    (long,) = [f for f in findings(file, "stage.0.max_tokens=4") if "tokens" in f.what]
    assert long.level == "error" and "and max_tokens is 4" in long.what
    table(tmp_path / "rows.jsonl", {n: {"prompt": "x"} for n in range(3, 24)})
    (all_odd,) = findings(file)
    assert all_odd.level == "error" and "21 of 24" in all_odd.what


class Evidence:
    """What the rule of the doctor looks at."""

    def __init__(self, found: Sequence[DeadLetter], directory: Path) -> None:
        self.letters = found
        self.run = self
        self.directory = directory


PAIRS = """
[[stage]]
kind = "train_reward"
name = "judge"
data = "pairs"
model = "base"
batch = 8
held_out = 0.25
"""


def test_a_reward_model_is_trained_without_the_odd_rows(tmp_path: Path, file: Path) -> None:
    pairs = [{"prompt": f"{n}?", "chosen": f"yes {n}", "rejected": "no"} for n in range(20)]
    pairs[7] = {"prompt": "7?", "chosen": "yes", "rejected": ["no"]}
    text = "".join(json.dumps(row) + "\n" for row in pairs)
    (tmp_path / "pairs.jsonl").write_text(text)
    table(tmp_path / "rows.jsonl", {})
    file.write_text(file.read_text().replace("[data]\n", '[data]\npairs = { path = "pairs.jsonl" }\n') + PAIRS)
    (few,) = findings(file)
    assert few.level == "warning" and "1 of 20" in few.what and "rejected is" in few.what
    (strict,) = findings(file, "stage.1.max_odd=0.01")
    assert strict.level == "error"
    with ring(tmp_path / "run", "stage.0.steps=1", file=file) as made:
        assert made.run()
        (letter,) = letters(made)
        assert (letter.topic, letter.offset) == ("data.pairs", 7) and "pairs.jsonl row 7: rejected is" in letter.error
        (told,) = odd_rows(Evidence([letter], made.directory))  # type: ignore[arg-type]
        assert "1 rows of [data.pairs] cannot be trained on" in told.what and "dlq replay" in told.fix
