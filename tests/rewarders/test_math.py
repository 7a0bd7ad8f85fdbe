"""MathAccuracy on answers that are right, wrong, odd and hostile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from broker.isolation import Failed
from broker.messages import ChatMessage, Sampling, Segment, Trajectory, VersionSpan
from rewarders.format import Format
from rewarders.math import MathAccuracy, normal, number
from rewarders.text import after_thinking, answer_span, last_box


def sample(text: str, answer: str | None = "5", finish: str = "stop", **fields: Any) -> Trajectory:
    tokens = np.array([1, 2], np.int32)
    spans = (Segment("prompt", 0, 1, False), Segment("assistant", 1, 2, True))
    return Trajectory("g@0", 0, 1, (ChatMessage("user", "?"),), answer, "", fields.pop("metadata", {}), {"r": 1.0}, "train", text, tokens, np.zeros(2, np.float32), spans, (VersionSpan(0, 1),), finish, Sampling())  # fmt: skip


@pytest.fixture(scope="module")
def judge() -> MathAccuracy:
    return MathAccuracy(timeout=20.0)


RIGHT = [
    ("5", "5"), ("5.0", "5"), (" 5 ", "5"), ("$5$", "5"), ("+5", "5"), ("5.", "5"), ("1,000", "1000"), ("0.5", "1/2"), ("1/2", "0.5"),
    ("\\frac{1}{2}", "1/2"), ("\\dfrac{1}{2}", "0.50"), ("\\frac12", "\\frac{1}{2}"), ("-\\frac{3}{4}", "-0.75"), ("1 1/2", "3/2"), ("½", "1/2"), ("1½", "1.5"),
    ("50\\%", "0.5"), ("50%", "1/2"), ("５", "5"), ("5\u200b", "5"), ("−5", "-5"), ("\\text{5}", "5"), ("5^\\circ", "5"), ("\\$5", "5"),
    ("(A)", "A"), ("A", "(A)"), ("a", "A"), ("B.", "B"), ("yes", "Yes"), ("\\text{Tuesday}", "tuesday"), ("New York", "new york"),
    ("x^2+2x+1", "(x+1)^2"), ("\\sqrt{8}", "2\\sqrt{2}"), ("\\frac{\\pi}{2}", "\\pi/2"), ("(1,2)", "(1, 2)"), ("\\{1,2\\}", "\\{2,1\\}"),
    ("x=5", "5"), ("2\\times 10^3", "2000"), ("\\left(1,2\\right)", "(1,2)"), ("e^{2}", "e^2"), ("\\frac{x}{2}", "0.5x"), ("3\\sqrt{2}", "\\sqrt{18}"),
    ("\\boxed{5}", "\\boxed{5}"), ("\\log 2", "\\log(2)"), ("2^{10}", "1024"), ("(x-1)(x+1)", "x^2-1"), ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"),
]  # fmt: skip
WRONG = [
    ("6", "5"), ("5.1", "5"), ("-5", "5"), ("1/3", "0.333333"), ("0.3333", "1/3"), ("", "5"), ("A", "B"), ("no", "yes"), ("abc", "cab"),
    ("3.14159", "\\pi"), ("1000000.4", "1000000"), ("1e-9", "0"), ("x^2", "x^3"), ("\\sqrt{2}", "1.41"), ("(1,2)", "(2,1)"), ("5,5", "5"),
    ("[5,5]", "5"), ("1=2=3=4=5", "5"), ("5\\text{ m}", "5\\text{ cm}"), ("10_2", "10"), ("10_{2}", "2"), ("(1,2]", "[1,2)"), ("1/0", "5"), ("\\frac{1}{0}", "0"),
]  # fmt: skip
HOSTILE = [
    "9^{9^{9^9}}", "9**9**9**9", "99999999!", "5!!!!!!", "\\int_0^1 x dx", "\\sum_{i=1}^{9999999} i", "\\prod_{i=1}^{99999} i", "10^{99999999}", "1e999999999",
    "9" * 5000, "(" * 500, "{" * 500 + "5" + "}" * 500, "\\frac{" * 100 + "5", "5\u202e6", "5\x00", "\x1b[31m5", "5\u2066", "__import__('os').system('true')",
    "lambda: 5", "exec('5')", "\\lim_{x\\to 0} 5", "x" * 2000, "5" + "\\cdot 1" * 400, "\\sqrt{" * 60 + "5" + "}" * 60, "\\input{/etc/passwd}", "5^^^5",
    "import os; 5", "5 if True else 6", "[5 for _ in range(9)]", "\\begin{matrix}" * 30, "5=5=5=5", "\\text{5}\\text{6}", "0x5", "5;6", "5|6", "NaN", "nan", "inf", "-inf",
    "\\infty", "5e", "5+", "=5=", "\\\\\\\\", "$$$$", "\ufffd", "５６", "\\frac{\\frac{\\frac{1}{0}}{0}}{0}",
]  # fmt: skip


@pytest.mark.parametrize(("found", "reference"), RIGHT)
def test_right_answers(judge: MathAccuracy, found: str, reference: str) -> None:
    assert judge.equal(found, reference) is True


@pytest.mark.parametrize(("found", "reference"), WRONG)
def test_wrong_answers(judge: MathAccuracy, found: str, reference: str) -> None:
    assert judge.equal(found, reference) is False


@pytest.mark.parametrize("found", HOSTILE)
def test_hostile_answers_get_nothing(judge: MathAccuracy, found: str) -> None:
    reward = judge(sample(f"<think>x</think><answer>\\boxed{{{found}}}</answer>", "5"))
    assert reward is not None and reward.value == 0.0


def test_most_answers_need_no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> bool:
        raise AssertionError("a parser was asked")

    monkeypatch.setattr(MathAccuracy, "_compare", never)
    judge = MathAccuracy()
    for found, reference in RIGHT[:31] + WRONG[:9]:
        judge.equal(found, reference)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\\boxed{5}", 1.0),
        ("first \\boxed{4}, no: \\boxed{5}", 1.0),
        ("<think>\\boxed{5}</think>", 0.0),
        ("<think>\\boxed{5}</think> \\boxed{6}", 0.0),
        ("<think>\\boxed{5}", 0.0),
        ("<answer>\\boxed{5}</answer><answer>\\boxed{4}</answer>", 0.0),
        ("<answer>\\boxed{4}</answer> \\boxed{5}", 0.0),
        ("</answer>\\boxed{5}<answer>", 0.0),
        ("5", 0.0),
        ("\\boxed{5", 0.0),
        ("\\boxed{\\frac{10}{2}}", 1.0),
    ],
)
def test_where_the_answer_may_stand(judge: MathAccuracy, text: str, value: float) -> None:
    reward = judge(sample(text))
    assert reward is not None and reward.value == value


def test_without_a_reference_it_abstains_and_without_a_box_it_may_read_the_tags(judge: MathAccuracy) -> None:
    assert judge(sample("\\boxed{5}", None)) is None
    loose = MathAccuracy(boxed=False)
    assert loose(sample("<think>x</think><answer>5</answer>")).value == 1.0  # type: ignore[union-attr]


def test_a_comparison_that_does_not_end_is_an_error_and_no_zero() -> None:
    judge = MathAccuracy(timeout=0.001)
    judge.equal("1", "2")
    with pytest.raises(Failed, match="timeout"):
        for _ in range(20):
            judge.equal("\\sqrt{x^{100}+\\sqrt{y^{99}+\\sqrt{z^{98}}}}", "\\sqrt{x^{100}+\\sqrt{y^{99}}}")


def test_scans_are_linear_on_long_text() -> None:
    text = "\\boxed{" * 200_000
    assert (
        last_box(text) is None
        and answer_span("<answer>" * 100_000) is None
        and after_thinking("<think>" * 100_000) == ""
    )
    assert normal("5" * 10) == "5" * 10 and number("9" * 5000) is None
    assert Format()(sample(text)).value == 0.0  # type: ignore[union-attr]


GOOD = "<think>3+4=7</think><answer>\\boxed{7}</answer>"


@pytest.mark.parametrize(
    ("text", "boxed", "plain"),
    [
        (GOOD, 1.0, 1.0),
        (GOOD + "\n", 1.0, 1.0),
        ("<think>x</think> \n <answer>7</answer>", 0.0, 1.0),
        ("<think></think><answer>\\boxed{7}</answer>", 0.0, 0.0),
        ("<think>x</think><answer> </answer>", 0.0, 0.0),
        ("<think>x</think><answer>\\boxed{}</answer>", 0.0, 1.0),
        ("x" + GOOD, 0.0, 0.0),
        (GOOD + "x", 0.0, 0.0),
        ("<think>x</think>y<answer>\\boxed{7}</answer>", 0.0, 0.0),
        (GOOD + GOOD, 0.0, 0.0),
        ("<think>x<think>y</think><answer>\\boxed{7}</answer>", 0.0, 0.0),
        ("<answer>\\boxed{7}</answer><think>x</think>", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_the_form_of_r1(text: str, boxed: float, plain: float) -> None:
    assert Format(boxed=True)(sample(text)).value == boxed  # type: ignore[union-attr]
    assert Format()(sample(text)).value == plain  # type: ignore[union-attr]
    assert Format()(sample(text, finish="length")).value == 0.0  # type: ignore[union-attr]
