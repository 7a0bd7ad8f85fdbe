"""MathAccuracy on answers that are right, wrong, odd and hostile."""

from __future__ import annotations

import os
import sys
import time

import pytest
from answercases import Case, Ending, math_cases, sample

from broker.errors import HeadraceError, RunFileError
from broker.faults import Failed
from rewarders.answers.warm import Ended, Warm
from rewarders.format import Format
from rewarders.math import MathAccuracy, UnreadableReference, normal, number
from rewarders.registry import judge_factory
from rewarders.text import after_thinking, answer_span, last_box


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


def test_any_of_several_accepted_answers_is_right(judge: MathAccuracy) -> None:
    accepted = {"answers": ["\\pi/2", "90"]}
    for said, value in (("90", 1.0), ("\\frac{\\pi}{2}", 1.0), ("45", 0.0)):
        reward = judge(sample(f"\\boxed{{{said}}}", "\\pi/2", metadata=accepted))
        assert reward is not None and reward.value == value, said
    unlisted = judge(sample("\\boxed{90}", "\\pi/2", metadata={"answers": "90"}))
    assert unlisted is not None and unlisted.value == 0.0, "a text is no list of answers"


WRONG = [
    ("6", "5"), ("5.1", "5"), ("-5", "5"), ("1/3", "0.333333"), ("0.3333", "1/3"), ("", "5"), ("A", "B"), ("no", "yes"), ("abc", "cab"),
    ("3.14159", "\\pi"), ("1000000.4", "1000000"), ("1e-9", "0"), ("x^2", "x^3"), ("\\sqrt{2}", "1.41"), ("(1,2)", "(2,1)"), ("5,5", "5"),
    ("[5,5]", "5"), ("1=2=3=4=5", "5"), ("5\\text{ m}", "5\\text{ cm}"), ("10_2", "10"), ("10_{2}", "2"), ("(1,2]", "[1,2)"), ("1/0", "5"), ("\\frac{1}{0}", "0"),
]  # fmt: skip
BOUNDED = ["rewarders.math:MathAccuracy", "rewarders.choice:Choice", "rewarders.instructions:Instructions"]
HOSTILE = [
    "9^{9^{9^9}}", "9**9**9**9", "99999999!", "5!!!!!!", "\\int_0^1 x dx", "\\sum_{i=1}^{9999999} i", "\\prod_{i=1}^{99999} i", "10^{99999999}", "1e999999999",
    "9" * 5000, "(" * 500, "{" * 500 + "5" + "}" * 500, "\\frac{" * 100 + "5", "5\u202e6", "5\x00", "\x1b[31m5", "5\u2066", "__import__('os').system('true')",
    "lambda: 5", "exec('5')", "\\lim_{x\\to 0} 5", "x" * 2000, "5" + "\\cdot 1" * 400, "\\sqrt{" * 60 + "5" + "}" * 60, "\\input{/etc/passwd}", "5^^^5",
    "import os; 5", "5 if True else 6", "[5 for _ in range(9)]", "\\begin{matrix}" * 30, "5=5=5=5", "\\text{5}\\text{6}", "0x5", "5;6", "5|6", "NaN", "nan", "inf", "-inf",
    "\\infty", "5e", "5+", "=5=", "\\\\\\\\", "$$$$", "\ufffd", "５６", "\\frac{\\frac{\\frac{1}{0}}{0}}{0}",
    "5" + "%" * 990,
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


def test_most_answers_need_no_symbolic_comparison() -> None:
    judge = MathAccuracy()
    for found, reference in RIGHT + WRONG:
        judge.equal(found, reference)
    assert not judge._symbolic


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\\boxed{5}", 1.0),
        ("first \\boxed{4}, no: \\boxed{5}", 0.0),
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


@pytest.mark.parametrize(
    "case",
    [
        c
        for c in [*math_cases(), *math_cases("math_cases_fresh.txt"), *math_cases("math_cases_second.txt")]
        if c.kind != "hostile"
    ],
    ids=lambda c: f"{c.kind}: {c.reference[:20]}",
)
def test_the_mixed_set(judge: MathAccuracy, case: Case) -> None:
    reward = judge(sample(case.response, case.reference))
    assert reward is not None and (reward.value == 1.0) is case.right, reward


def test_hostile_cases_of_the_mixed_set_are_quick(judge: MathAccuracy) -> None:
    judge._warm().ask({"reference": "1"})
    for case in math_cases():
        if case.kind == "hostile":
            started = time.process_time()
            reward = judge(sample(case.response, case.reference))
            assert reward is not None and reward.value == 0.0, case
            assert time.process_time() - started < 1.0, case


@pytest.mark.parametrize(
    "answer",
    [
        "5 \\text{" + "cm^2 " * 200 + "5}",
        "5 \\text{" + "x^ { 2 } " * 110 + "5}",
        "\\sum_{k=1}^{2000}\\log_{1.5}(1.5^{2400})",
        "\\sum_{k=1}^{2000} 5000!",
        "\\sum_{k=1}^{2000} \\binom{40000}{2000}",
    ],
    ids=lambda a: a[:30],
)
def test_an_answer_that_repeats_what_is_costly_is_quick(judge: MathAccuracy, answer: str) -> None:
    started = time.process_time()
    reward = judge(sample(f"\\boxed{{{answer}}}"))
    assert reward is not None and reward.value == 0.0
    assert time.process_time() - started < 1.0


def test_exact_logarithms(judge: MathAccuracy) -> None:
    for logarithm, value in (("\\log_{1.5}(1.5^{-2400})", "-2400"), ("\\log_{1/2} 8", "-3"), ("\\log_7 1", "0")):
        assert judge.equal(f"\\max(0, {logarithm}) + \\min(0, {logarithm})", value), logarithm


def test_the_cost_of_a_judgement_is_the_answers_own_doing() -> None:
    assert all(judge_factory({"use": use, "options": {}, "base": "."}).about["bounded"] for use in BOUNDED)


@pytest.mark.parametrize(
    ("spellings", "canonical"),
    [
        (["\\frac{1}{2}", "0.5", "1/2", ".50", "50\\%", "x=\\frac12", "\\frac{2}{4}"], "1/2"),
        (["(x+1)^2", "x^2+2x+1", "1+x(x+2)"], "x^2 + 2*x + 1"),
        (["1,2", "2, 1", "\\{1,2\\}", "x=1 \\text{ or } x=2"], "{1, 2}"),
        (["\\sqrt{8}", "2\\sqrt{2}", "2√2"], "2.8284271247462"),
        (["(0,1]", "0<x\\le 1", "x\\in(0,1]"], "(0, 1]"),
        (["\\text{Tuesday}", "tuesday", "Tuesday."], "tuesday"),
        (["12\\text{ km}", "12", "12 apples"], "12"),
        (["\\frac{1}{x}", "x^{-1}"], None),
        (["e^{-100}", "\\frac{1}{e^{100}}"], "3.7200759760208e-44"),
        (["\\sin \\pi", "0", "e^{i\\pi}+1"], "0"),
    ],
)
def test_equal_answers_have_one_canonical_text_right_or_wrong(
    judge: MathAccuracy, spellings: list[str], canonical: str | None
) -> None:
    wrong = {judge(sample(f"\\boxed{{{s}}}", "77")).answer for s in spellings}  # type: ignore[union-attr]
    assert len(wrong) == 1 and (canonical is None or wrong == {canonical})
    right = {judge(sample(f"\\boxed{{{s}}}", spellings[0])).answer for s in spellings}  # type: ignore[union-attr]
    assert len(right) == 1


def test_percent_units_and_boxes_are_policies() -> None:
    assert not MathAccuracy().equal("50\\%", "50") and MathAccuracy(percent="either").equal("50\\%", "50")
    assert MathAccuracy().equal("12", "12\\text{ km}") and not MathAccuracy(units="required").equal(
        "12", "12\\text{ km}"
    )
    assert not MathAccuracy(units="none").equal("12\\text{ km}", "12")
    two = sample("\\boxed{4} \\boxed{5}")
    verdicts = {policy: MathAccuracy(boxes=policy)(two).value for policy in ("agree", "first", "last")}  # type: ignore[union-attr]
    assert verdicts == {"agree": 0.0, "first": 0.0, "last": 1.0}
    assert MathAccuracy(tolerance=0.01).equal("3.14", "\\pi")
    with pytest.raises(RunFileError, match="percent = 'maybe' must be one of"):
        MathAccuracy(percent="maybe")


@pytest.mark.parametrize("reference", ["", "  ", "\\frac{1}{", "5\x00", "((5", "\\", "x" * 9000])
def test_a_reference_that_cannot_be_read_is_named_at_once(judge: MathAccuracy, reference: str) -> None:
    with pytest.raises(UnreadableReference, match="cannot be read"):
        judge(sample("\\boxed{5}", reference))
    with pytest.raises(UnreadableReference):
        judge(sample("no answer at all", reference))


@pytest.mark.long
def test_what_a_comparison_dies_of_is_told_and_the_next_one_is_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    warm = Warm("answercases:hanging", cpu_seconds=0.2, timeout=60.0, memory_mb=1024)
    assert warm.ask({"answer": "yes"}) is True and warm.ask({"answer": "no"}) is False
    orders = [("spin", "timeout"), ("eat", "killed"), ("crash", "killed"), ("kill", "killed")]
    for order, cause in orders:
        with pytest.raises(Ended) as ended:
            warm.ask({"answer": order})
        assert (ended.value.cause, ended.value.by_machine) == (cause, order == "kill"), order
        assert warm.ask({"answer": "yes"}) is True
    assert warm.restarts == len(orders)
    warm.stop()
    late = Warm("answercases:hanging", cpu_seconds=0.2, timeout=0.5, memory_mb=1024)
    with pytest.raises(Ended) as ended:
        late.ask({"answer": "sleep"})
    assert (ended.value.cause, ended.value.by_machine) == ("timeout", True)
    late.stop()


def test_what_only_math_verify_reads_is_compared_by_it(judge: MathAccuracy) -> None:
    assert judge.equal("\\frac{1}{3}", "\\int_0^1 x^2 dx") and not judge.equal("\\frac{1}{4}", "\\int_0^1 x^2 dx")


@pytest.mark.long
def test_an_answer_that_kills_the_comparison_is_wrong_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    judge, integral = MathAccuracy(timeout=60.0), "\\int_0^1 x^2 dx"
    judge.reference(integral)
    judge._symbolic[0].stop()
    judge._symbolic[0] = Warm("answercases:hanging", cpu_seconds=0.2, timeout=60.0, memory_mb=1024)
    for order, cause in (("spin", "timeout"), ("eat", "killed"), ("crash", "killed")):
        reward = judge(sample(f"\\boxed{{\\{order}}}", integral))
        assert reward is not None and (reward.value, reward.cause) == (0.0, cause)


INTEGRAL = "\\int_0^1 x^2 dx"


@pytest.mark.parametrize("cause", ["timeout", "killed"])
def test_only_what_the_answer_itself_did_to_the_comparison_is_a_wrong_answer(cause: str) -> None:
    for by_machine in (False, True):
        judge = MathAccuracy()
        judge._symbolic.append(Ending(Ended(cause, "the end", by_machine), "answer"))
        asked = sample("\\boxed{\\frac{1}{3}}", INTEGRAL)
        if by_machine:
            with pytest.raises(Failed, match="too busy") as failed:
                judge(asked)
            assert failed.value.kind == "error", "a time-out would become a wrong answer"
        else:
            reward = judge(asked)
            assert reward is not None and (reward.value, reward.cause) == (0.0, cause)


@pytest.mark.parametrize("by_machine", [False, True])
def test_a_reference_is_asked_about_again_where_the_comparison_ended(by_machine: bool) -> None:
    judge, warm = MathAccuracy(), Ending(Ended("timeout", "the end", by_machine), "reference")
    judge._symbolic.append(warm)
    for _ in range(2):
        with pytest.raises(Failed, match="not known: the end"):
            judge.reference(INTEGRAL)
    warm.at = "nothing"
    assert judge.reference(INTEGRAL).text == judge.reference(INTEGRAL).text and warm.asked == 3


def test_a_judge_that_does_not_start_is_an_error_and_no_zero() -> None:
    judge = MathAccuracy()
    judge._symbolic.append(Warm("nowhere:factory", cpu_seconds=1, timeout=1, memory_mb=1024))
    with pytest.raises(HeadraceError, match=r"does not start|ended by itself"):
        judge(sample("\\boxed{5}", "\\int_0^1 x^2 dx"))


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
