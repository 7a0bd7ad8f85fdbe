"""Repetition, length, and reflective words of single samples; and what only a whole group tells."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from spoken import group, spoken

from broker.errors import MessageError, RunFileError
from broker.messages import Trajectory
from rewarders.comparison import Difficulty, Diversity, Tournament
from rewarders.length import CalibratedLength, Overlong
from rewarders.reflection import Reflection
from rewarders.repetition import Repetition

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


@dataclass(frozen=True)
class Says:
    """Right if the text says so; a text of "?" is not for it."""

    right: str = "right"

    def __call__(self, sample: Trajectory) -> float | None:
        return None if sample.text == "?" else float(sample.text == self.right)


@dataclass(frozen=True)
class Longer:
    """Prefers the longer text; a ``biased`` one always says the first is better."""

    biased: bool = False

    def prefer(self, first: Trajectory, second: Trajectory) -> float:
        a, b = len(first.text), len(second.text)
        return 1.0 if self.biased else (a > b) + 0.5 * (a == b)


def test_a_text_without_repetition_costs_nothing() -> None:
    rng = random.Random(0)
    assert Repetition()(spoken(" ".join(rng.choices(WORDS, k=600)))).value == 0.0
    assert Repetition()(spoken("short")).value == 0.0 and Repetition()(spoken("")).value == 0.0


@pytest.mark.parametrize(
    "loop",
    [
        "wait, let me check. ",
        "ha",
        "一二三",
        "so ",
        "=",
        "x+1=",
        "Let me verify each step of the sum again, and then once more. ",
        "слово ",
    ],
)
def test_a_loop_costs_nearly_all_whatever_its_period_and_script(loop: str) -> None:
    assert -1.0 <= Repetition()(spoken(loop * (6000 // len(loop)))).value < -0.85


def test_the_penalty_grows_with_the_share_that_is_repeated() -> None:
    rng = random.Random(1)
    own = " ".join(rng.choices(WORDS, k=300))
    values = [Repetition()(spoken(own + " and so on it goes" * times)).value for times in (0, 10, 60, 400)]
    assert values == sorted(values, reverse=True) and values[0] == 0.0 and values[-1] < -0.7


def test_overlong_is_the_penalty_of_dapo() -> None:
    judge = Overlong(limit=100, buffer=20)
    values = {n: judge(spoken("x", tokens=n)).value for n in (1, 80, 90, 95, 100, 150)}
    assert values == pytest.approx({1: 0.0, 80: 0.0, 90: -0.5, 95: -0.75, 100: -1.0, 150: -1.0})
    assert Overlong()(spoken("x", tokens=90, limit=100)).value == pytest.approx(-0.5), (
        "the sample's own limit, a fifth of it as buffer"
    )


def test_length_costs_as_much_as_the_question_is_easy() -> None:
    judge = CalibratedLength(correct="test_penalties:Says", scale=100)
    easy = judge.judge(group(["right"] * 4, [10, 20, 40, 100]))
    hard = judge.judge(group(["right", "no", "no", "no"], [10, 20, 40, 100]))
    assert [r.value for r in easy if r] == pytest.approx([-0.1, -0.2, -0.4, -1.0])
    assert [r.value for r in hard if r] == pytest.approx([-0.025, -0.05, -0.1, -0.25])
    none = judge.judge(group(["no"] * 4, [10, 20, 40, 100]))
    assert [r.value for r in none if r] == pytest.approx([-0.025, -0.05, -0.1, -0.25]), (
        "never for nothing: at least one in G"
    )
    assert judge.judge(group(["?", "?"])) == [None, None]
    only = CalibratedLength(correct="test_penalties:Says", scale=100, only_right=True)
    assert [r.value for r in only.judge(group(["right", "no"], [10, 20])) if r] == pytest.approx([-0.05, 0.0])


def test_difficulty_is_what_the_group_did_not_solve() -> None:
    judge = Difficulty(correct={"use": "test_penalties:Says", "right": "yes"})
    assert [r and r.value for r in judge.judge(group(["yes", "no", "no", "no"]))] == [0.75] * 4
    assert [r and r.value for r in judge.judge(group(["yes", "?", "no"]))] == [0.5] * 3, "who abstains is not counted"
    assert judge.judge(group(["?"])) == [None]


def test_a_rewarder_inside_of_another_is_checked_as_in_the_run_file() -> None:
    with pytest.raises(RunFileError, match="did you mean 'right'"):
        Difficulty(correct={"use": "test_penalties:Says", "rihgt": "yes"})
    with pytest.raises(RunFileError, match="use = 'module:Class'"):
        Difficulty(correct={})


def test_diversity_is_the_distance_from_the_others() -> None:
    same, other = "we add the two numbers", "first count upwards from three"
    values = [r.value for r in Diversity().judge(group([same, same, other])) if r]
    assert values == pytest.approx([0.5, 0.5, 1.0])
    assert Diversity().judge(group([same])) == [None]
    assert [r.value for r in Diversity().judge(group(["", ""])) if r] == [0.0, 0.0]


def test_a_tournament_ranks_by_the_matches_that_are_won() -> None:
    judge = Tournament(judge_of_pairs="test_penalties:Longer")
    values = [r.value for r in judge.judge(group(["a", "aaa", "aa", "aaaa"])) if r]
    assert values == pytest.approx([0.0, 2 / 3, 1 / 3, 1.0])
    assert [r.value for r in judge.judge(group(["b", "b"])) if r] == [0.5, 0.5]
    assert judge.judge(group(["alone"])) == [None]


def test_both_orders_cancel_a_judge_that_favours_a_place() -> None:
    biased = {"use": "test_penalties:Longer", "biased": True}
    assert [r.value for r in Tournament(judge_of_pairs=biased).judge(group(["a", "aaa", "aa"])) if r] == [0.5] * 3


@pytest.mark.parametrize(("size", "opponents"), [(2, 0), (3, 0), (8, 0), (9, 0), (8, 2), (16, 4), (5, 2)])
def test_everybody_plays_equally_often_and_no_pair_twice(size: int, opponents: int) -> None:
    pairs = list(Tournament(judge_of_pairs="test_penalties:Longer", opponents=opponents).pairs(size, "g-0@0"))
    played = [sum(i in pair for pair in pairs) for i in range(size)]
    assert len({frozenset(p) for p in pairs}) == len(pairs)
    assert set(played) == {min(size - 1, opponents or size - 1)}
    assert pairs == list(
        Tournament(judge_of_pairs="test_penalties:Longer", opponents=opponents).pairs(size, "g-0@0")
    ), "drawn by the group alone"


def test_reflective_words_are_counted_in_the_thought() -> None:
    reward = Reflection()(spoken("<think>Wait, that is wrong. But wait: check it.</think>However, 5"))
    assert reward.value == 5.0 and "wait 2" in reward.why
    assert Reflection(sees="response")(spoken("<think>wait</think>However, 5")).value == 2.0
    assert Reflection(per=1000)(spoken("wait " * 20)).value == pytest.approx(20 * 1000 / 99, rel=0.02)


def test_wrong_options_are_refused() -> None:
    wrong: Sequence[tuple[type, dict[str, object]]] = [
        (Repetition, {"n": 0}), (Repetition, {"allowed": 1.0}), (Overlong, {"buffer": 0}), (Diversity, {"n": 0}), (Reflection, {"sees": "all"}),
    ]  # fmt: skip
    for kind, options in wrong:
        with pytest.raises(MessageError, match=next(iter(options))):
            kind(**options)
