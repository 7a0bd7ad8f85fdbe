"""Intervals over questions: seeded, as wide as theory says, and never absent."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import fmean, stdev

import pytest
from evaluated import Evaluated

from broker.messages import Dropped
from learner.planning.intervals import bootstrap, mean_interval, wilson


def test_the_bootstrap_is_the_same_every_time_and_as_wide_as_the_normal_one() -> None:
    chance = random.Random(3)
    values = [fmean(chance.random() < 0.3 for _ in range(4)) for _ in range(400)]
    low, high = bootstrap(values)
    assert (low, high) == bootstrap(list(values)) and (low, high) != bootstrap(values, seed=1)
    half = 1.96 * stdev(values) / 20
    assert low == pytest.approx(fmean(values) - half, abs=0.004) and high == pytest.approx(
        fmean(values) + half, abs=0.004
    )


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    chance = random.Random(4)
    hits = 0
    for _ in range(200):
        low, high = mean_interval([float(chance.random() < 0.4) for _ in range(60)])
        hits += low <= 0.4 <= high
    assert 180 <= hits <= 199


def test_without_spread_it_is_wilsons() -> None:
    assert mean_interval([1.0] * 20) == wilson(1.0, 20) and mean_interval([0.5]) == wilson(0.5, 1)
    assert mean_interval([]) == (0.0, 1.0)


def test_very_many_questions_are_drawn_in_blocks() -> None:
    low, high = bootstrap([1.0, 0.0] * 10_000)
    assert 0.48 < low < 0.5 < high < 0.52


def test_what_was_never_finished_is_wrong_and_what_has_no_judgement_is_told(tmp_path: Path) -> None:
    run = Evaluated(tmp_path)
    made = run.evaluation("zero:1", 1, ["1~", "1-", "--", "00"], lost=[Dropped("heldout-9@zero:1", "incomplete", 5)])
    assert made.marks == ("10", "1-", "00") and made.questions == 3 and made.pass_at_1 == 0.5
    assert [(d.group_id, d.reason) for d in made.dropped] == [
        ("heldout-9@zero:1", "incomplete"),
        ("heldout-2@zero:1", "unjudged"),
    ]
    told = made.metrics
    assert (told["questions_asked"], told["samples_judged"], told["samples_unfinished"]) == (5, 5, 1)
    assert (
        told["pass_at_1_least"] == pytest.approx(2 / 10)
        and told["pass_at_k_low"] <= told["pass_at_k"] <= told["pass_at_k_high"]
    )
    assert (made.data, made.rewarder) == ("heldout", "accuracy")
    nothing = run.evaluation("zero:2", 2, ["--"])
    assert (nothing.questions, nothing.pass_at_1, nothing.pass_at_1_interval, nothing.marks) == (0, 0.0, (0.0, 1.0), ())
    empty = run.evaluation("zero:3", 3, [])
    assert (empty.questions, empty.metrics["pass_at_1_least"], empty.response_tokens) == (0, 0.0, 0.0)
    run.close()
