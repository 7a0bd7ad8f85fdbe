"""What the report and summary.json tell of each stage: benchmarks, cost, languages, hacked rewards, samples side by side; from small real logs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluated import Evaluated

from broker.messages import GroupRef, Position, SampleRef
from headrace.commands.report import write_report
from headrace.reading.history import History
from headrace.reading.sampled import generated_tokens, generated_until
from headrace.reading.stages import further, owned, owner, tables
from headrace.reading.verify import verify
from monitoring.report import RunReport

STAGES = """
[[stage]]
kind = "sft"
name = "cold"
[[stage]]
kind = "evaluate"
name = "after-cold"
[[stage]]
kind = "rl"
name = "zero"
[[stage]]
kind = "reject"
name = "picked"
[[stage]]
kind = "evaluate"
name = "end"
"""


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Evaluated]:
    run = Evaluated(tmp_path / "run", STAGES)
    yield run
    run.close()


def trained(run: Evaluated, step: int, **metrics: float) -> None:
    """A step of stage ``zero`` with its manifest."""
    nowhere = GroupRef(f"p-{step}@0", Position(0, 0), (SampleRef(0, Position(0, 0), ()),))
    run.manifest(step, 2, "step", groups=(nowhere,))
    run.step(step, 2, **metrics)


def story(run: Evaluated) -> Evaluated:
    """A cold start, reinforcement that raises a proxy while held-out accuracy falls, and a last evaluation."""
    run.manifest(1, 0, "weights", weights="checkpoints/cold")
    run.step(10, 0, tokens_trained=100.0)
    run.step(20, 0, tokens_trained=100.0)
    run.evaluation("after-cold/aime", 1, ["10", "11", "00"], stage=1, data="aime", says="cold")
    run.evaluation("after-cold/math", 1, ["1", "1"], stage=1, data="math", says="cold", tokens=5)
    for n in range(6):
        trained(run, 2 + n, tokens_trained=50.0, **{"reward/proxy": 0.1 * n, "reward/accuracy": 0.5 - 0.05 * n})
        run.evaluation(f"zero/aime:{n}", 2 + n, ["11", "10", "00"] if n < 2 else ["10", "00", "00"] if n < 4 else ["00", "00", "00"], stage=2, data="aime", says=f"zero {n}", tokens=4 + n)  # fmt: skip
    run.evaluation("end", 7, ["10", "11", "11"], stage=4, data="aime", says="end", tokens=20)
    return run


def report(run: Evaluated) -> tuple[dict, RunReport, str]:
    from headrace.reading.report import report_of

    summary, audit = write_report(run.run, 5.0)
    written = json.loads((run.run.directory / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    return written, report_of(run.log, run.run, summary, audit), (run.run.directory / "report.html").read_text()


def test_an_evaluation_counts_for_the_stage_whose_model_it_asked(made: Evaluated) -> None:
    found = tables(made.run)
    assert [owner(found, n) for n in range(5)] == [0, 0, 2, 2, 2] and owner(found, 9) == 9
    assert owner([{"kind": "evaluate"}, {"kind": "rl"}], 0) == 0, "nothing was trained before it"
    assert owner([{"kind": "rl"}, {"kind": "evaluate", "model": "other"}], 1) == 1
    named = [{"kind": "sft", "name": "a"}, {"kind": "rl", "name": "b"}, {"kind": "evaluate", "model": "a"}]
    assert owner(named, 2) == 0, "the model that the first stage left"
    story(made)
    scores = owned(made.run, History.of(made.log, made.run.topics))
    assert {stage: {b: e.name for b, e in by.items()} for stage, by in scores.items()} == {
        "cold": {"aime": "after-cold/aime", "math": "after-cold/math"},
        "zero": {"aime": "end"},
    }


@pytest.mark.long
def test_stages_down_and_benchmarks_across(made: Evaluated) -> None:
    summary, _, page = report(story(made))
    cold, zero = summary["stages"]["cold"], summary["stages"]["zero"]
    assert (
        cold["benchmarks"]["aime"]["pass_at_1"] == pytest.approx(0.5) and cold["benchmarks"]["math"]["pass_at_1"] == 1.0
    )
    assert zero["benchmarks"]["aime"]["pass_at_1"] == pytest.approx(5 / 6) and zero["benchmarks"]["aime"]["k"] == 2
    assert list(zero["benchmarks"]) == ["aime"] and zero["benchmarks"]["aime"]["tokens"] == 20.0
    section = page[page.index('id="stages"') : page.index('id="curves"')]
    assert (
        "<b>83.3</b>" in section
        and "50.0 <small" in section
        and "cons@2" in section
        and '<td class="dim">-</td>' in section
    )
    assert "Length of the answers" in section and section.count("<svg") == 2, (
        "one benchmark has a course, the other one point"
    )


@pytest.mark.long
def test_one_source_may_be_several_benchmarks(made: Evaluated) -> None:
    made.manifest(1, 2, "close")
    made.evaluation("end/sums", 1, ["1", "0"], stage=4)
    made.evaluation("end/language", 1, ["1", "1"], stage=4)
    summary, found, _ = report(made)
    assert {name: s["pass_at_1"] for name, s in summary["stages"]["zero"]["benchmarks"].items()} == {
        "sums": 0.5,
        "language": 1.0,
    }
    assert {e.benchmark for e in found.excerpts} == {"sums", "language"}


@pytest.mark.long
def test_tokens_and_seconds_of_each_stage(made: Evaluated) -> None:
    summary, found, page = report(story(made))
    cold, zero = summary["stages"]["cold"], summary["stages"]["zero"]
    assert (cold["steps"], cold["tokens_trained"]) == (20, 2000), "of twenty steps two were recorded"
    assert (zero["steps"], zero["tokens_trained"]) == (7, 300)
    asked, generated = summary["stages"]["after-cold"], sum(s["tokens_generated"] for s in summary["stages"].values())
    assert asked["tokens_generated"] == 6 * 3 + 2 * 5 and asked["steps"] == 0
    assert generated == summary["tokens"]["generated"] == generated_tokens(made.log, made.run.topics)
    assert all(row.seconds >= 0 for row in found.stages) and "Cost of the stages" in page
    assert [row.name for row in found.stages] == ["cold", "after-cold", "zero", "end"]


def test_generated_tokens_fall_to_the_stage_that_was_under_way(made: Evaluated) -> None:
    made.evaluation("a", 1, ["1"], tokens=3)
    assert generated_until(made.log, made.run.topics, (0.0, 1e12)) == [0, 3]
    assert (
        generated_until(made.log, made.run.topics, (0.0,)) == [0]
        and generated_until(made.log, made.run.topics, ()) == []
    )


@pytest.mark.long
def test_a_proxy_that_rises_while_accuracy_falls_is_told(made: Evaluated) -> None:
    summary, _, page = report(story(made))
    assert summary["hacking"]["proxy"] > 0.4 and summary["hacking"]["accuracy"] == 0.0
    assert "Rewarders against held-out accuracy" in page


@pytest.mark.long
def test_answers_of_the_stages_stand_side_by_side_the_most_different_first(made: Evaluated) -> None:
    _, found, page = report(story(made))
    first = found.excerpts[0]
    assert first.benchmark == "aime" and first.question == "aime question 2"
    assert first.answers == [("cold", False, "cold 0 to aime question 2"), ("zero", True, "end 1 to aime question 2")]
    section = page[page.index('id="side-by-side"') : page.index('id="samples"')]
    assert section.count("<details>") == len(found.excerpts) == 5 and '<span class="good">right</span>' in section


@pytest.mark.long
def test_samples_that_are_gone_are_not_shown_and_the_figures_stay(made: Evaluated) -> None:
    story(made)
    for topic in (made.run.topics.trajectories, made.run.topics.prompts):
        made.log.trim(topic, dict(made.log.ends(topic)))
    summary, found, page = report(made)
    assert found.excerpts == [] and "No evaluation names samples" in page
    assert summary["stages"]["zero"]["benchmarks"]["aime"]["pass_at_1"] == pytest.approx(5 / 6)


@pytest.mark.long
def test_a_run_without_any_stage_or_with_nothing_judged_is_told_so(made: Evaluated) -> None:
    summary, found, page = report(made)
    assert (summary["stages"], summary["writing"], summary["hacking"]) == ({}, {}, {})
    assert "No benchmark has been asked." in page and "No stage has left a record." in page
    made.evaluation("end", 1, ["--"], stage=4)
    made.evaluation("empty", 1, [], stage=4)
    summary, found, page = report(made)
    assert summary["stages"]["end"]["benchmarks"] == {} and "No benchmark has been asked." in page
    assert (
        verify(made.log, made.run.topics) is not None
        and further(found, History.of(made.log, made.run.topics))["hacking"] == {}
    )
