"""Choice on letters, texts of options, hedging, and options from everywhere."""

from __future__ import annotations

import time
from typing import Any

import pytest
from answercases import sample

from rewarders.answers.readings import UnreadableReference
from rewarders.choice import Choice, parsed, table

GASES = ["Oxygen", "Nitrogen", "Carbon dioxide", "A noble gas"]
VALUES = {"A": "$\\frac{1}{2}$", "B": "2", "C": "12\\text{ m/s}", "D": "none of these"}


def judged(answer: str, reference: str = "C", options: Any = GASES, **fields: Any) -> float:
    reward = Choice(**fields)(
        sample(f"<think>t</think>\\boxed{{{answer}}}", reference, metadata={"options": options} if options else {})
    )
    assert reward is not None
    return reward.value


@pytest.mark.parametrize(
    "answer",
    ["C", "(C)", "c", "C.", "C)", "\\text{C}", "\\text{(C)}", "\\mathbf{C}", "Option C", "The answer is C", "Answer: C", "C) Carbon dioxide", "C: carbon dioxide",
     "(C) Carbon dioxide", "C. Carbon Dioxide.", "Carbon dioxide", "carbon dioxide.", "\\text{Carbon dioxide}", "[C]", "C Carbon dioxide", "Ｃ", "C\u200b"],
)  # fmt: skip
def test_the_letter_or_the_text_of_the_right_option(answer: str) -> None:
    assert judged(answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    ["A", "B", "(D)", "Oxygen", "A or C", "C or A", "(A) ... (C)", "C, D", "A, B, C, D", "B) Carbon dioxide (C)", "C) Oxygen", "C and D", "ABCD", "AC", "", " ", "E", "X", "?", "Carbon",
     "Carbon dioxide or oxygen", "not C", "any of them", "C\u202eA", "C) or maybe (A)", "all of the above", "C or D"],
)  # fmt: skip
def test_other_options_hedging_and_nonsense(answer: str) -> None:
    assert judged(answer) == 0.0


def test_values_of_options_are_compared_as_mathematics() -> None:
    assert (
        judged("0.5", "A", VALUES) == 1.0 and judged("12 m/s", "C", VALUES) == 1.0 and judged("2", "A", VALUES) == 0.0
    )
    assert judged("C", "12 m/s", VALUES) == 1.0 and judged("B", "12 m/s", VALUES) == 0.0


def test_an_option_that_begins_with_an_article_is_no_letter() -> None:
    assert judged("A noble gas", "D") == 1.0 and judged("A", "D") == 0.0 and judged("A noble gas", "A") == 0.0


def test_several_right_options_must_be_named_and_no_others() -> None:
    assert judged("A, C", "A,C") == 1.0 and judged("C and A", "A, C") == 1.0
    assert judged("A", "A,C") == 0.0 and judged("A, B, C", "A,C") == 0.0


def test_without_options_the_letter_is_enough() -> None:
    assert (
        judged("C", options=None) == 1.0
        and judged("C) whatever it says", options=None) == 1.0
        and judged("B", options=None) == 0.0
    )
    assert judged("A or C", options=None) == 0.0


def test_options_are_found_in_the_question_and_in_metadata_of_any_form() -> None:
    lines = "Which gas?\nA) Oxygen\nB) Nitrogen\nC) Argon"
    assert parsed(lines) == {"A": "Oxygen", "B": "Nitrogen", "C": "Argon"}
    assert parsed("Which? (A) 1 (B) 2, (C) 3") == {"A": "1", "B": "2", "C": "3"}
    assert parsed("A. Einstein wrote to B. Russell.") == {} and parsed("no options") == {}
    assert table({"label": ["1", "2"], "text": ["x", "y"]}) == {"A": "x", "B": "y"} and table(["A) x", "B) y"]) == {
        "A": "x",
        "B": "y",
    }
    asked = sample("\\boxed{Argon}", "C", question=lines)
    assert Choice()(asked).answer == "C"  # type: ignore[union-attr]


def test_the_canonical_answer_is_the_letter() -> None:
    answers = {
        Choice()(sample(f"\\boxed{{{a}}}", "A", metadata={"options": GASES})).answer
        for a in ("B", "(b)", "nitrogen", "B) Nitrogen")
    }  # type: ignore[union-attr]
    assert answers == {"B"}


def test_answers_without_a_box() -> None:
    def value(text: str) -> float:
        reward = Choice(boxed=False)(sample(text, "C", metadata={"options": GASES}))
        assert reward is not None
        return reward.value

    assert (
        value("<think>A?</think>\n<answer>C</answer>") == 1.0 and value("Oxygen is wrong, as B is.\nAnswer: C") == 1.0
    )
    assert value("<think>C") == 0.0 and value("Answer: A or C") == 0.0
    assert judged("C", boxed=True) == 1.0 and Choice()(sample("C", "C")).value == 0.0  # type: ignore[union-attr]


@pytest.mark.parametrize("reference", ["E", "", "Helium", "A or so"])
def test_a_reference_that_is_no_option_is_named(reference: str) -> None:
    with pytest.raises(UnreadableReference, match="names none of the options"):
        judged("C", reference)


def test_a_list_of_nothing_is_read_in_time() -> None:
    started = time.process_time()
    assert judged("A " + ", " * 200 + "?") == judged("A" + " , and , " * 100 + "?") == 0.0
    assert time.process_time() - started < 1.0


def test_it_abstains_without_a_reference_and_several_boxes_must_agree() -> None:
    assert Choice()(sample("\\boxed{C}", None)) is None
    assert judged("C} and \\boxed{C") == 1.0 and judged("A} and \\boxed{C") == 0.0
