"""The report's parts: axes, charts and the page, from data made by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from handreport import hand_report

from monitoring.report import Histogram, RunReport, Score, write_html
from monitoring.report.charts import BINS, Line, histogram, largest, line_chart, share_bar, stack_chart
from monitoring.report.data import waiting_share
from monitoring.report.page import SECTIONS, page
from monitoring.report.scale import Bin, Scale, binned, bins, decades, figure, ticks

NAN = float("nan")


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1] and ticks(3, 3) == [3]
    assert ticks(-7, 13) == [-5, 0, 5, 10]
    assert decades(0.02, 300) == [0.1, 1, 10, 100] and len(decades(1e-30, 1e30)) <= 6
    for low, high in ((1e-9, 2e-9), (-1e300, 1e300), (1e6, 1e6 + 1)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 7 and all(low - 1e-9 * abs(low) <= t <= high + 1e-9 * abs(high) for t in found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (9876, "9876"), (12_345, "12.3k"), (81_234_567, "81.2M"), (-3.1e-5, "-3.1e-5"), (1e20, "1e+20"), (999_999, "1000k")],
)  # fmt: skip
def test_figures_are_short(value: float, text: str) -> None:
    assert figure(value) == text


def test_many_steps_are_drawn_as_few_with_their_spread() -> None:
    values = [float(i % 10) for i in range(10_000)]
    ranges = bins(list(range(10_000)), BINS)
    assert len(ranges) == BINS and ranges[0] == (0, 50) and ranges[-1] == (9950, 10_000)
    assert binned(values, ranges)[7] == Bin(pytest.approx(4.5), 0.0, 9.0)
    assert binned([NAN, None, math.inf, 2.0], [(0, 3), (2, 4)]) == [None, Bin(2.0, 2.0, 2.0)]


def test_a_scale_maps_its_ends() -> None:
    assert [Scale(0, 10, 100, 0)(v) for v in (0, 5, 10)] == [100, 50, 0]
    assert Scale(1, 100, 0, 10, True)(10) == pytest.approx(5) and Scale(1, 100, 0, 10, True)(0) == 0
    assert Scale(3, 3, 0, 10)(3) == 5


def test_a_curve_without_a_number_is_not_drawn() -> None:
    assert line_chart("x", [1.0, 2.0], [Line("a", [NAN, math.inf]), Line("b", [])]) == ""
    assert histogram(Histogram("x", "tokens")) == "" and share_bar({"a": 0.0}) == "" and stack_chart("x", [], {}) == ""
    drawn = line_chart("x", [1.0, 2.0], [Line("a", [NAN, 4.0]), Line("b", [NAN, NAN])])
    assert drawn.count("<circle") == 1 and "step 2\na: 4" in drawn and "nan" not in drawn


def test_an_interval_is_drawn_and_told() -> None:
    drawn = line_chart("pass", [5.0], [Line("pass@1", [0.5], [0.4], [0.6])], fixed=True)
    assert drawn.count('class="whisker') == 1 and ">1</text>" in drawn


def test_a_logarithmic_axis_needs_a_wide_range_of_positive_numbers() -> None:
    steps = [1.0, 2.0]
    assert "logarithmic" in line_chart("x", steps, [Line("a", [0.01, 10.0])], log=True)
    assert ">1e-5</text>" in (far := line_chart("x", steps, [Line("a", [1e-13, 10.0])], log=True)) and "1e-7" not in far
    assert "logarithmic" not in line_chart("x", steps, [Line("a", [0.0, 10.0])], log=True)
    assert "logarithmic" not in line_chart("x", steps, [Line("a", [5.0, 10.0])], log=True)


def test_layers_fill_the_whole_height_and_the_smallest_become_one() -> None:
    layers = {f"phase {n}": [float(n), float(n)] for n in range(1, 12)}
    kept = largest(layers)
    assert list(kept)[:2] == ["phase 11", "phase 10"] and kept["rest"] == [10.0, 10.0] and len(kept) == 8
    assert sum(values[0] for values in kept.values()) == sum(range(1, 12))
    assert "rest" in stack_chart("x", [1.0, 2.0], kept, "s")
    assert "wait 25.0% (1 s)" in share_bar({"wait": 1.0, "work": 3.0})


def test_a_histogram_counts_every_sample_once() -> None:
    data = Histogram("length", "tokens", dict.fromkeys(range(100), 1), {1000: 7})
    told = re.findall(r"early [\d.]+% \((\d+)\)\nlate [\d.]+% \((\d+)\)", histogram(data))
    assert sum(int(early) for early, _ in told) == 100 and sum(int(late) for _, late in told) == 7 and len(told) <= 24
    assert "-3\nearly 100.0% (2)" in histogram(Histogram("x", "", {-3: 2}))


def test_waiting_is_what_its_name_says() -> None:
    assert waiting_share({"wait_data": [1.0, 1.0], "pack": [6.0]}) == 0.25 and waiting_share({}) == 0.0


@pytest.mark.parametrize("steps", [1, 2, 300])
def test_every_part_is_there(steps: int) -> None:
    made = page(hand_report(steps))
    assert [made.count(f'<section id="{name}">') for name in SECTIONS] == [1] * len(SECTIONS)
    for title in ("Reward", "Held-out pass@1 (95% interval)", "Entropy", "KL divergence", "Clipped and masked tokens", "Effective sample size",
                  "Gradient norm", "Response length", "Staleness", "Time of each step by phase", "Staleness of trained samples",
                  "Response length of trained samples", "Responses with each reflective word", "Share of words by script",
                  "Words in the majority script of their response", "Samples cut at the length limit"):  # fmt: skip
        assert f"<figcaption>{title} <small>" in made, title
    for word in (
        "rewarders differ by 0.5",
        "zero_variance",
        "2.11.0",
        "The log is sound.",
        "before 0.214; 500 questions",
    ):
        assert word in made
    assert "://" not in made and "nan" not in made and "<script" not in made


def test_stages_and_benchmarks_stand_in_a_table_with_the_best_marked() -> None:
    made = page(hand_report(40))
    table = made[made.index('id="stages"') : made.index('id="curves"')]
    assert table.count("<b>") == 2 and "<b>80.0</b>" in table and "[75.0, 85.0], cons@16 90.0" in table
    assert table.count('<td class="dim">-</td>') == 1, "the first stage was not asked the second benchmark"
    assert "<figcaption>aime <small>" in table and "<figcaption>Length of the answers <small>tokens" in table


def test_what_each_stage_cost() -> None:
    made = page(hand_report(40))
    table = made[made.index('id="cost"') : made.index('id="audit"')]
    assert "<td>10k</td><td>0</td><td>0</td><td>3,600</td><td>33.3%</td>" in table and table.count("<tr>") == 4


def test_languages_before_and_after() -> None:
    made = page(hand_report(40))
    assert "<th>words in Han</th><td>10.0%</td><td>2.8%</td>" in made


def test_answers_of_the_stages_side_by_side() -> None:
    made = page(hand_report(40))
    part = made[made.index('id="side-by-side"') : made.index('id="samples"')]
    assert part.count("<details>") == 2 and part.count('<div class="card">') == 6
    assert [part.count(f">{word}<") for word in ("right", "wrong", "not judged")] == [2, 2, 2]


def test_each_benchmark_has_a_line_of_its_own() -> None:
    report = hand_report(40)
    report.course += [Score("math", s.step, 400, 1, 0.5, 0.4, 0.6, 0.5, 90.0) for s in report.course]
    chart = page(report).split("<figcaption>Held-out pass@1")[1].split("</figure>")[0]
    assert "aime</li>" in chart and "math</li>" in chart


def test_ten_thousand_steps_fit_into_a_few_megabytes(tmp_path: Path) -> None:
    write_html(hand_report(10_000), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_a_run_without_anything_has_every_section() -> None:
    made = page(RunReport("none", {}, ""))
    assert made.count("<section") == len(SECTIONS) and "No step has been trained." in made
