"""Two checkpoints on the same questions: the statistics against slow versions, and the command on small logs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest
from evaluated import Evaluated
from runlog import messages

from broker.errors import RunFileError
from broker.messages import Evaluation
from headrace.__main__ import main
from headrace.reading.answered import chosen
from headrace.reading.paired import paired, sign_test


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Evaluated]:
    run = Evaluated(tmp_path / "a")
    yield run
    run.close()


def slow_sign_test(more: int, fewer: int) -> float:
    """Every way in which the signs could have fallen."""
    n = more + fewer
    counts = [sum(signs) for signs in product((0, 1), repeat=n)]
    return min(1.0, 2 * sum(c <= min(more, fewer) for c in counts) / len(counts))


@pytest.mark.parametrize(("more", "fewer"), [(0, 0), (1, 0), (5, 0), (7, 3), (3, 7), (4, 4), (8, 2)])
def test_the_sign_test_counts_every_way(more: int, fewer: int) -> None:
    assert sign_test(more, fewer) == pytest.approx(slow_sign_test(more, fewer))


def test_a_sign_test_of_very_many_questions_is_exact_and_quick() -> None:
    assert sign_test(5_000, 5_000) == 1.0 and 0 < sign_test(5_200, 4_800) < 1e-4


def test_pairs_are_those_that_both_have_judged() -> None:
    found = paired({"a": "1", "b": "0", "c": "-", "d": "1"}, {"a": "0", "b": "1", "c": "1", "e": "1"})
    assert found is not None and found.questions == 2 and found.alone == (1, 2) and found.test.startswith("McNemar")
    assert [p.key for p in found.better] == ["b"] and [p.key for p in found.worse] == ["a"]
    assert (found.difference, found.p) == (0.0, 1.0)
    assert paired({"a": "1"}, {"b": "1"}) is None and paired({}, {}) is None and paired({"a": "--"}, {"a": "1"}) is None


def test_the_interval_is_paired_and_the_same_every_time() -> None:
    chance = random.Random(5)
    hard = [chance.random() for _ in range(200)]
    first = {str(n): "".join("10"[chance.random() > p] for _ in range(4)) for n, p in enumerate(hard)}
    second = {str(n): "".join("10"[chance.random() > min(1, p + 0.1)] for _ in range(4)) for n, p in enumerate(hard)}
    found, again = paired(first, second), paired(first, second)
    assert found == again and found is not None and found.test == "exact sign test"
    low, high = found.interval
    assert low < found.difference < high and low > 0, "a rise of .1 is seen, though questions differ by much more"
    mean = fmean(second[k].count("1") / 4 - first[k].count("1") / 4 for k in first)
    assert found.difference == pytest.approx(mean)


def test_one_question_says_nothing_of_others() -> None:
    found = paired({"a": "0"}, {"a": "1"})
    assert found is not None and (found.difference, found.interval, found.p) == (1.0, (-1.0, 1.0), 1.0)


def test_stages_steps_and_names_choose_the_newest_evaluation_of_each_benchmark(made: Evaluated) -> None:
    made.evaluation("zero/aime:10", 11, ["1"], data="aime")
    made.evaluation("zero/math:10", 11, ["1"], data="math")
    made.evaluation("zero/aime:20", 21, ["0"], data="aime")
    made.evaluation("end", 21, ["1"], stage=2)

    def named(which: str) -> list[str]:
        return sorted(e.name for e in chosen(made.log, made.run.topics, which).values())

    assert named("zero") == ["zero/aime:20", "zero/math:10"] and named("11") == ["zero/aime:10", "zero/math:10"]
    assert named("zero/aime:10") == ["zero/aime:10"] and named("21") == ["end", "zero/aime:20"]
    assert named("") == ["end", "zero/aime:20", "zero/math:10"]
    with pytest.raises(RunFileError, match=r"no evaluation 'zer'; did you mean 'zero.*of steps 11, 21"):
        chosen(made.log, made.run.topics, "zer")


def test_two_steps_of_a_run_are_told_side_by_side(made: Evaluated, capsys: pytest.CaptureFixture[str]) -> None:
    made.evaluation("zero:10", 11, ["0", "0", "1", "~", "1"], says="first")
    made.evaluation("zero:20", 21, ["1", "1", "0", "1", "1"], says="second")
    home = str(made.run.directory)
    assert main(["compare", f"{home}@zero:10", f"{home}@21"]) == 0
    told = capsys.readouterr().out
    assert "heldout: 5 questions" in told and "zero:10 (version 11): pass@1 0.400" in told
    assert (
        "difference +0.400" in told
        and "McNemar's exact test p = 0.625" in told
        and "3 questions better, 1 worse, 1 the same" in told
    )
    assert "better: heldout question 0 (0.00 to 1.00)" in told and "zero:10: first 0 to heldout question 0" in told
    assert "zero:20: second 1 to heldout question 0" in told
    assert main(["compare", f"{home}@zero:10", f"{home}@zero:20", "--json", "--show", "1"]) == 0
    wire = json.loads(capsys.readouterr().out)["heldout"]
    assert (
        wire["better"] == 3 and len(wire["flipped"]["better"]) == 1 and wire["interval"][0] < 0.4 < wire["interval"][1]
    )
    assert wire["flipped"]["worse"][0]["first_text"] == "first 1 to heldout question 2"


def test_runs_are_paired_by_what_they_ask(made: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Evaluated(tmp_path / "b")
    made.evaluation("end", 5, ["1", "0", "0"], questions=["one?", "two?", "three?"])
    other.evaluation("end", 7, ["1", "1", "1"], questions=["four?", "two?", "three?"])
    other.close()
    assert main(["compare", f"{made.run.directory}@end", f"{tmp_path / 'b'}", "--json"]) == 0
    wire = json.loads(capsys.readouterr().out)["heldout"]
    assert (wire["questions"], wire["alone"], wire["better"], wire["worse"]) == (2, [1, 1], 2, 0)


def test_what_cannot_be_compared_is_said(made: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = str(made.run.directory)
    assert main(["compare", home, home]) == 2 and "has no evaluation" in capsys.readouterr().err
    made.evaluation("zero/aime:10", 11, ["1"], data="aime")
    made.evaluation("zero/math:20", 21, ["-"], data="math")
    assert main(["compare", f"{home}@11", f"{home}@21"]) == 2 and "no benchmark in common" in capsys.readouterr().err
    assert main(["compare", f"{home}@21", f"{home}@21"]) == 2 and "no question in common" in capsys.readouterr().err
    assert main(["compare", f"{home}@11", f"{home}@11", "--data", "math"]) == 2
    assert "no evaluation on 'math'; there are aime" in capsys.readouterr().err
    assert main(["compare", f"{home}@11", str(tmp_path / "nowhere")]) == 2 and "is no run" in capsys.readouterr().err
    assert main(["compare", f"{home}@11", f"{home}@11", "--show", "-1"]) == 2


def test_records_without_marks_are_judged_by_the_votes_of_the_log(
    made: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an earlier version has written them."""
    from dataclasses import replace

    for name, step, marks in (("zero:10", 11, ["01", "~-"]), ("zero:20", 21, ["11", "1-"])):
        whole = made.evaluation(name, step, marks)
        made.write("steps", f"evaluation/{name}", replace(whole, marks=(), data="", rewarder=""))
    written = [m for m in messages(made.run.directory, "steps") if isinstance(m, Evaluation)]
    assert [e.marks for e in written] == [("01", "0-"), (), ("11", "1-"), ()]
    home = made.run.directory
    assert main(["compare", f"{home}@11", f"{home}@21", "--json"]) == 0
    wire = json.loads(capsys.readouterr().out)["heldout"]
    assert (
        wire["first"]["pass_at_1"] == 0.25 and wire["second"]["pass_at_1"] == 1.0 and wire["test"] == "exact sign test"
    )
    assert main(["compare", f"{home}@11", f"{home}@21", "--rewarder", "format"]) == 2
    assert "there are votes of accuracy" in capsys.readouterr().err


def test_what_retention_has_removed_is_said_and_the_figures_stay(
    made: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, step, marks in (("zero:10", 11, ["0", "1"]), ("zero:20", 21, ["1", "1"])):
        made.evaluation(name, step, marks)
    for topic in (made.run.topics.trajectories, made.run.topics.prompts):
        made.log.trim(topic, dict(made.log.ends(topic)))
    home = made.run.directory
    assert main(["compare", f"{home}@11", f"{home}@21"]) == 0
    told = capsys.readouterr().out
    assert (
        "difference +0.500" in told and "paired by the numbers of their rows" in told and "its samples are gone" in told
    )


def test_a_side_whose_prompts_are_gone_is_paired_by_rows_with_one_whose_are_there(
    made: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    made.evaluation("zero:10", 11, ["0", "1"])
    made.log.trim(made.run.topics.prompts, dict(made.log.ends(made.run.topics.prompts)))
    made.evaluation("zero:20", 21, ["1", "1"])
    home = made.run.directory
    assert main(["compare", f"{home}@11", f"{home}@21", "--json"]) == 0
    wire = json.loads(capsys.readouterr().out)["heldout"]
    assert (wire["questions"], wire["difference"], wire["paired_by_row"]) == (2, 0.5, True)
