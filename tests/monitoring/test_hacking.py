"""When a rewarder is called gamed, on courses that are made by hand."""

from __future__ import annotations

import random

import pytest
from handreport import hand_report

from monitoring.hacking import EVALUATIONS, Monitor, Point, gaps, rise
from monitoring.report.curves import curves

ALERT = 0.15


def course(held: list[float], shadow: list[float] | None = None, **rewards: list[float]) -> list[Point]:
    return [
        Point(10.0 * i, value, {n: v[i] for n, v in rewards.items()}, {} if shadow is None else {"other": shadow[i]})
        for i, value in enumerate(held)
    ]


def test_a_rise_is_the_median_slope_and_one_odd_value_moves_it_little() -> None:
    assert rise([0, 10, 20, 30], [0.0, 0.1, 0.2, 0.3]) == pytest.approx(0.3)
    assert rise([0, 10, 20, 30, 40], [0.0, 0.1, 0.9, 0.3, 0.4]) == pytest.approx(0.4)
    assert rise([0, 10], [0.0, 1.0]) == 0.0, "two points are no trend"
    assert rise([5, 5, 5], [0.0, 0.5, 1.0]) == 0.0


def test_a_reward_that_rises_while_accuracy_falls_has_a_gap_and_an_honest_one_has_none() -> None:
    up, down = [0.2, 0.35, 0.5, 0.65, 0.8], [0.6, 0.58, 0.5, 0.45, 0.4]
    found = gaps(course(down, style=up, accuracy=down))
    assert found["style"] == pytest.approx(0.6 + 0.2, abs=0.05) and found["accuracy"] == 0.0
    assert gaps(course(up, style=up)) == {"style": 0.0}, "both rise: it learns"
    assert gaps(course(down, style=down)) == {"style": 0.0}, "both fall: it unlearns, which is another matter"
    assert gaps(course([0.5] * 5, style=up)) == {"style": 0.0}, "accuracy that stands still falls nowhere"


def test_a_shadow_that_falls_is_as_good_a_witness_as_accuracy() -> None:
    up, down = [0.2, 0.35, 0.5, 0.65, 0.8], [0.9, 0.8, 0.7, 0.6, 0.5]
    assert gaps(course([0.5] * 5, shadow=down, style=up))["style"] == pytest.approx(0.6 + 0.4, abs=0.05)
    assert gaps(course([0.5] * 5, shadow=up, style=up))["style"] == 0.0


def test_large_values_are_taken_in_their_own_unit() -> None:
    up, down = [200.0, 350.0, 500.0, 650.0, 800.0], [0.6, 0.58, 0.5, 0.45, 0.4]
    assert gaps(course(down, length=up))["length"] == pytest.approx(0.75 + 0.2, abs=0.05)


def test_only_the_last_evaluations_count() -> None:
    up, down = [i / 10 for i in range(5)], [0.9 - i / 10 for i in range(5)]
    assert gaps(course(down + [0.5] * EVALUATIONS, style=up + [0.5] * EVALUATIONS)) == {"style": 0.0}
    assert gaps([]) == {} and gaps(course([0.5], style=[1.0])) == {"style": 0.0}


def test_noise_alone_rings_no_bell() -> None:
    """pass@1 over a hundred questions, and means over some hundred samples, around courses without any trend, and around honest ones."""
    chance = random.Random(3)

    def noisy(slope: float) -> list[float]:
        return [0.4 + slope * i + chance.gauss(0, 0.03) for i in range(EVALUATIONS)]

    rung = [
        max(gaps(course(noisy(slope), style=noisy(slope))).values()) > ALERT
        for slope in (0.0, 0.05)
        for _ in range(500)
    ]
    assert sum(rung) <= 5, f"{sum(rung)} of {len(rung)}"
    hacked = [gaps(course(noisy(-0.04), style=noisy(0.06)))["style"] > ALERT for _ in range(500)]
    assert sum(hacked) >= 495, f"{sum(hacked)} of {len(hacked)}"


def test_the_monitor_takes_the_steps_between_evaluations_by_benchmark() -> None:
    monitor = Monitor()
    assert monitor.evaluation("rl", 0, 0.9) == {}, "before the first step there is no reward"
    for number in range(1, 5):
        for _ in range(3):
            monitor.step({"reward/style": 0.2 * number, "shadow/other": 0.5, "loss": 1.0})
        found = monitor.evaluation("rl", 10 * number, 0.9 - 0.1 * number)
        monitor.evaluation("aime", 10 * number, 0.1 * number)
    assert found["style"] == pytest.approx(0.6 + 0.3) and set(found) == {"style"}
    monitor.begin()
    assert monitor.evaluation("rl", 50, 0.1) == {}


def test_the_report_draws_rewarders_against_held_out_accuracy() -> None:
    report = hand_report()
    charts = [chart for chart in curves(report) if "Rewarders against held-out accuracy" in chart]
    assert len(charts) == 1 and "pass@1" in charts[0] and "accuracy" in charts[0]
    report.evaluations = []
    assert not any("Rewarders against" in chart for chart in curves(report))
