"""Lineage of a step, and the run in numbers, from a log made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from handmade import Handmade
from ringtools import answer_of

from broker.errors import RunFault
from headrace.commands.report import write_report
from headrace.reading.report import report_of
from headrace.reading.summary import WallClock, summarise
from headrace.reading.trace import trace, trace_supervised
from headrace.reading.verify import verify


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Handmade]:
    hand = Handmade(tmp_path / "log").whole()
    yield hand
    hand.close()


def test_a_step_is_traced_to_its_samples_and_votes(made: Handmade) -> None:
    lineage = trace(made.log, made.topics, 3)
    assert [g["group_id"] for g in lineage["groups"]] == ["p-4@0", "p-5@0"]
    assert {d["group_id"]: d["reason"] for d in lineage["dropped"]} == {"p-2@0": "stale", "p-3@0": "dead_letter"}
    assert lineage["metrics"]["staleness_mean"] == 0.5, "of a redo the last result holds"
    group, ref = lineage["groups"][0], made.refs["p-4@0"]
    assert (group["question"], group["answer"], group["prompt"]) == ("2+2?", "4", list(ref.prompt))
    low, high = group["samples"]
    assert high["position"] == list(ref.samples[1].position) and high["actor"] == "actor-0"
    assert (low["reward"], high["reward"]) == (0.0, 1.5), "the weighted sum of the votes"
    assert (high["versions"], high["staleness"], high["tokens"]) == ([[1, 2]], 1, 3)
    vote = high["votes"][0]
    assert (vote["rewarder"], vote["value"], vote["why"]) == ("accuracy", 1.0, "as it should be")
    assert json.loads(json.dumps(lineage)) == lineage


def test_a_step_that_is_not_there_is_said_so(made: Handmade) -> None:
    with pytest.raises(RunFault, match=r"has no step 9; it has 2..3"):
        trace(made.log, made.topics, 9)
    with pytest.raises(RunFault, match="has no step 1;"):
        trace(made.log, made.topics, 1)  # it was made by the supervised stage


def test_a_supervised_step_is_traced_to_the_rows_of_its_sources(made: Handmade, tmp_path: Path) -> None:
    made.supervised(11, 40, first_half=((7, 2), (3, 1)), other=((0, 1),))
    made.supervised(11, 40, first_half=((7, 2), (4, 1)), other=((0, 1),))
    lineage = trace_supervised(made.log, made.topics, 0, 11)
    assert lineage["rows"] == {"first_half": [[7, 2], [4, 1]], "other": [[0, 1]]}, "of a redo the last result holds"
    assert lineage["documents"] == {"first": 40, "count": 4, "sha256": "aa11"} and lineage["metrics"] == {"loss": 1.0}
    with pytest.raises(RunFault, match=r"has no step 12 of stage 0; it has 11..11"):
        trace_supervised(made.log, made.topics, 0, 12)
    made.run(tmp_path)
    text = answer_of("trace", str(tmp_path), "11", "--stage", "0-sft")
    assert text.returncode == 0 and "documents 40 to 43 of the stage" in text.stdout
    assert "first_half: 3 rows: 7-8, 4" in text.stdout and "other: 1 rows: 0" in text.stdout
    told = json.loads(answer_of("trace", str(tmp_path), "11", "--stage", "0-sft", "--json").stdout)
    assert told == lineage
    unknown = answer_of("trace", str(tmp_path), "11", "--stage", "0-stf")
    assert unknown.returncode == 2 and "did you mean '0-sft'" in unknown.stderr


def test_what_cannot_be_read_is_told_in_its_place(made: Handmade) -> None:
    partition, offset = made.refs["p-0@0"].samples[0].position
    made.log.trim(made.topics.trajectories, {partition: offset + 1})
    samples = [s for g in trace(made.log, made.topics, 2)["groups"] for s in g["samples"]]
    assert "has expired" in samples[0]["unreadable"] and len(samples[0]["votes"]) == 2
    assert any("text" in s for s in samples[1:])


def test_the_summary_counts_what_the_log_says(made: Handmade, tmp_path: Path) -> None:
    run, audit = made.run(tmp_path), verify(made.log, made.topics)
    summary = summarise(made.log, run, audit, 12.5)
    assert summary["steps"] == 2 and summary["wall_seconds"] == 12.5 and summary["seed"] == 5
    assert summary["pass_at_1"] == {"before": 0.25, "after": 0.75, "k": 2, "questions": 100, "judged_share": 1.0}
    assert summary["groups"] == {
        "fed": 8, "trained": 4, "dropped": 1, "dead_lettered": 1, "evaluated": 1, "outstanding": 1,
    }  # fmt: skip
    assert summary["tokens"] == {"generated": 8 * 3, "trained": 24}
    assert summary["staleness"] == {"mean": 0.75, "max": 1.0} and summary["phases"] == {"optimizer": 1.0}
    assert summary["versions"]["torch"][0].isdigit()
    report = report_of(made.log, run, summary, audit)
    assert report.steps == [2.0, 3.0] and len(report.evaluations) == 2
    assert report.samples[0].reward == 1.5 and report.samples[0].votes["format"] == "1.0 as it should be"


@pytest.mark.long
def test_the_report_is_written_whole(made: Handmade, tmp_path: Path) -> None:
    summary, audit = write_report(made.run(tmp_path), 3.0)
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert audit.problems == [] and (tmp_path / "plots" / "reward.png").stat().st_size > 1000
    assert "it is 4" in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob(".*")), "nothing half written is left"


@pytest.mark.long
def test_a_run_without_any_step_has_a_summary(tmp_path: Path) -> None:
    hand = Handmade(tmp_path / "log")
    summary, _ = write_report(hand.run(tmp_path), 0.0)
    assert summary["steps"] == 0 and summary["pass_at_1"]["before"] is None
    hand.close()


def test_wall_time_adds_up_over_sittings(tmp_path: Path) -> None:
    first = WallClock(tmp_path).start()
    first.keep()
    kept = json.loads((tmp_path / "seconds.json").read_text())["seconds"]
    (tmp_path / "seconds.json").write_text(json.dumps({"seconds": kept + 100.0}))
    assert WallClock(tmp_path).seconds == kept + 100.0, "a clock that was not started stands"
    second = WallClock(tmp_path).start()
    assert second.seconds >= kept + 100.0
    second.keep(every=3600.0)
    assert json.loads((tmp_path / "seconds.json").read_text())["seconds"] == kept + 100.0, "not due yet"
    (tmp_path / "seconds.json").write_text("")
    assert WallClock(tmp_path).seconds == 0.0, "a file that a power cut has emptied keeps no run from going on"


def test_the_commands_on_this_log(made: Handmade, tmp_path: Path) -> None:
    made.run(tmp_path)
    made.write(made.topics.deadletters, b"\xc1 rubbish")
    text = answer_of("trace", str(tmp_path), "3")
    assert text.returncode == 0 and "reward 1.5" in text.stdout and "accuracy=1 (as it should be)" in text.stdout
    assert "staleness 1" in text.stdout and "dropped p-2@0: stale" in text.stdout and "version 1" in text.stdout
    missing = answer_of("trace", str(tmp_path), "9")
    assert missing.returncode == 3 and missing.stderr.count("\n") == 1
    tail = answer_of("broker", "tail", str(tmp_path), "--count", "1", "--json")
    assert len(json.loads(tail.stdout)) == 1 and "after" in tail.stdout
    topics = answer_of("broker", "topics", str(tmp_path / "run.toml"), "--json")
    assert topics.returncode == 2, "a run file leads to runs/NAME"
    rows = {
        row["topic"]: row["records"]
        for row in json.loads(answer_of("broker", "topics", str(tmp_path), "--json").stdout)
    }
    assert rows["small.trajectories"] == 8 and rows["small.rewards"] == 16
    assert answer_of("broker", "tail", str(tmp_path), "--topic", "step").returncode == 2
    assert answer_of("replay", str(tmp_path), "--steps", "3-2", "--out", str(tmp_path / "out")).returncode == 2
