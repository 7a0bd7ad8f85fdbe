"""An evaluation that was not judged, or hardly, says so wherever it is told, and ends no stage."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

import pytest
from evaluated import Evaluated
from prometheus_client import CollectorRegistry

from headrace.commands.evaluate import told
from headrace.reading.summary import summarise
from headrace.reading.verify import verify
from headrace.running.progress import Progress
from learner.config import LearnerConfig
from learner.stages.rl import best
from learner.telemetry import Telemetry


def test_without_any_judgement_there_is_no_figure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = Evaluated(tmp_path)
    nothing = made.evaluation("end", 1, ["----", "----"], stage=2)
    assert nothing.doubt == "nothing could be judged" and nothing.judged_share == 0.0
    assert told(nothing) == "end, version 1: nothing could be judged, of 2 questions" and best([nothing]) == 0.0
    registry = CollectorRegistry()
    Telemetry(registry).evaluation(nothing)
    assert "end: nothing could be judged, by accuracy" in caplog.text and "pass@1" not in caplog.text
    summary = summarise(made.log, made.run, verify(made.log, made.run.topics), 1.0)["pass_at_1"]
    assert summary == {"before": None, "after": None, "k": 4, "questions": 0, "judged_share": 0.0}
    with closing(Progress(made.run, LearnerConfig(made.run.file), list)) as progress:
        ((name, value, *_),) = progress.refresh().evaluations
    assert name == "end (nothing could be judged)" and math.isnan(value)


def test_what_is_hardly_judged_is_marked_and_ends_no_stage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A judge that fails on long answers leaves the short ones, which are not like them."""
    made = Evaluated(tmp_path)
    few = made.evaluation("zero:10", 10, ["1---", "1---", "1---", "10--"])
    enough = made.evaluation("zero:20", 20, ["1101", "1111", "1-11", "1111"])
    assert few.pass_at_1 > enough.pass_at_1 - 0.1 and few.judged_share == 5 / 16
    assert few.doubt == "only 31% of its answers were judged" and not enough.doubt
    assert few.doubt in told(few) and "answers were judged" not in told(enough)
    assert best([few]) == 0.0 and best([few, enough]) == enough.pass_at_1
    telemetry = Telemetry(CollectorRegistry())
    telemetry.evaluation(few)
    assert "zero:10: only 31% of its answers were judged, by accuracy" in caplog.text


def test_a_record_of_an_earlier_version_is_believed(tmp_path: Path) -> None:
    from dataclasses import replace

    whole = Evaluated(tmp_path).evaluation("end", 1, ["11", "10"], stage=2)
    old = replace(whole, metrics={}, data="", rewarder="")
    assert old.judged_share == 1.0 and not old.doubt
