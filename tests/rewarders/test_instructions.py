"""Every instruction of IFEval: one response that follows it, and some that nearly do."""

from __future__ import annotations

from typing import Any

import pytest
from answercases import sample

from broker.errors import MessageError, RunFileError
from rewarders.instructions import Instructions
from rewarders.instructions.checks import CHECKS, sentences
from rewarders.instructions.languages import is_in

pytestmark = pytest.mark.lane("languages and rubrics")  # seconds to load
LEAST, LESS = "at least", "less than"
TWO = "One way is this.\n******\nAnother way is that."
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["river", "old boat"]}, ["The River has an old boat."], ["The river has a boat.", "The rivers; an old boat."]),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": LEAST}, ["Sea and sea."], ["sea", "seashore, sea"]),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": LESS}, ["One sea.", "seal, seal, seal"], ["sea sea"]),
    ("keywords:forbidden_words", {"forbidden_words": ["never", "c++"]}, ["Nevertheless fine"], ["NEVER say so", "in C++ it is"]),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": LEAST}, ["Q q"], ["q"]),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": LESS}, ["calm"], ["Oh!"]),
    ("language:response_language", {"language": "de"}, ["Der Fluss ist heute sehr breit und das Wasser steigt."], ["The river is very wide today and the water rises."]),
    ("language:response_language", {"language": "kn"}, ["ನದಿ ಅಗಲವಾಗಿದೆ"], ["The river is wide", "123"]),
    ("language:response_language", {"language": "zh-cn"}, ["今天河水很宽"], ["今日の川はとても広いです", "The river"]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": LEAST}, ["Dr. Ada came. She left!"], ["Dr. A. Lovelace came"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": LESS}, ["two words"], ["three words here"]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["First.\n***\nSecond.", "***\nFirst.\n***\nSecond."], ["First.\n\nSecond.", "a *** *** b"]),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Rivers"},
     ["Hello.\n\n\"Rivers\" run."], ["Rivers run.\n\nHello.", "Hello.\n\nRiversides.", "a\n\nRivers\n\nc"]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["Dear [name], see [place]."], ["Dear [name].", "[]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Bye.\nP.S. Write soon.", "Bye.\np. s. Write"], ["Bye.", "Psalm 4", "Bye. P.S."]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Bye.\nP.P.S Write."], ["Bye.\nP.S. Write."]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* one\n* two", "- one\n  - two"], ["* one", "* a\n* b\n- c", "**bold** a\n* one"]),
    ("detectable_format:constrained_response", {}, ["My answer is maybe."], ["Perhaps.", "My answer is yes"]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*one* and **two**"], ["*one*", "** ** and **two**", "2 * 3 * 4"]),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2}, ["SECTION 1\na\nSECTION 2\nb"], ["SECTION 1", "SUBSECTION 1 SUBSECTION 2"]),
    ("detectable_format:json_format", {}, ['{"a": [1]}', '```json\n{"a": 1}\n```'], ["{'a': 1}", 'Here: {"a": 1}', "[" * 100_000]),
    ("detectable_format:title", {}, ["<<On rivers>>\nThey run."], ["<On rivers>", "<< >>", "<<\n>>"]),
    ("combination:two_responses", {}, [TWO], ["One.", "Same.\n******\nSame.", f"{TWO}\n******\nThird.", "******One"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say why."}, ["say why. Because."], ["Because. Say why."]),
    ("startend:end_checker", {"end_phrase": "That is all."}, ['So it is. "That is all."', "that is ALL."], ["That is all. Really."]),
    ("startend:quotation", {}, ['"Rivers run."'], ["Rivers run.", '"', '"Rivers" run.']),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": LEAST}, ["NO WAY out"], ["NO way", "No Way Out"]),
    ("change_case:english_capital", {}, ["THE RIVER IS VERY WIDE TODAY."], ["THE RIVER IS Wide.", "DER FLUSS IST HEUTE SEHR BREIT UND TIEF."]),
    ("change_case:english_lowercase", {}, ["the river is very wide today."], ["The river is very wide today."]),
    ("punctuation:no_comma", {}, ["No such thing here."], ["Well, here."]),
]  # fmt: skip


def value(text: str, *asked: tuple[str, dict[str, Any]], **options: Any) -> float:
    metadata: dict[str, Any] = {"instructions": [{"id": name, "with": given} for name, given in asked]}
    reward = Instructions(**options)(sample(text, None, metadata=metadata))
    assert reward is not None
    return reward.value


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "given", "follow", "break_it"), CASES, ids=[f"{c[0]}-{n}" for n, c in enumerate(CASES)]
)
def test_each_instruction(name: str, given: dict[str, Any], follow: list[str], break_it: list[str]) -> None:
    assert [value(text, (name, given)) for text in follow] == [1.0] * len(follow)
    assert [value(text, (name, given)) for text in break_it] == [0.0] * len(break_it)


def test_every_instruction_has_a_case() -> None:
    assert {name for name, *_ in CASES} == CHECKS.keys() and len(CHECKS) == 25


def test_all_or_a_share_and_the_loose_forms() -> None:
    both = ("punctuation:no_comma", {}), ("startend:quotation", {})
    assert value("Rivers run.", *both) == 0.0 and value("Rivers run.", *both, reward="fraction") == 0.5
    chatty = 'Sure, here it is:\n"Rivers run."'
    assert value(chatty, *both) == 0.0 and value(chatty, *both, loose=True) == 1.0
    assert value("***", *both, loose=True) == 0.0, "what is left of it is empty"


def test_the_thought_does_not_count_and_an_unfinished_one_is_no_answer() -> None:
    asked = ("punctuation:no_comma", {})
    assert value("<think>Well, well</think>Fine.", asked) == 1.0
    assert value("<think>Well</think><answer>Well, fine</answer>", asked) == 0.0
    assert value("<think>Well", asked) == 0.0 and value("<think>a</think> ", asked) == 0.0


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("punctuation:no_coma", {}), "did you mean 'punctuation:no_comma'"),
        (("keywords:existence", {"keywords": "river"}), "keywords = 'river'; it must be a list of texts"),
        (("length_constraints:number_words", {"num_words": 3, "relation": "about"}), "relation = 'about'"),
        (("length_constraints:number_words", {"num_words": "x", "relation": LEAST}), "num_words = 'x'"),
        (("length_constraints:number_words", {"num_words": float("inf"), "relation": LEAST}), "num_words = 'inf'"),
        (("language:response_language", {"language": "klingon"}), "klingon"),
    ],
)
def test_a_mistake_of_the_data_set_is_an_error_and_no_wrong_answer(
    asked: tuple[str, dict[str, Any]], told: str
) -> None:
    with pytest.raises(MessageError, match=told):
        value("Rivers run.", asked)


def test_it_abstains_without_instructions_and_refuses_unknown_options() -> None:
    assert Instructions()(sample("x", None)) is None
    with pytest.raises(MessageError, match="must be a list"):
        Instructions()(sample("x", None, metadata={"instructions": "no commas"}))
    with pytest.raises(RunFileError, match="'all', 'fraction'"):
        Instructions(reward="most")


@pytest.mark.long
def test_sentences_and_languages() -> None:
    assert sentences("Mr. J. Smith met Dr. Wu at 3.5 km. Did he? Yes!\n\nNo stop here") == [
        "Mr. J. Smith met Dr. Wu at 3.5 km.",
        "Did he?",
        "Yes!",
        "No stop here",
    ]
    assert sentences("今天。明天！") == ["今天。", "明天！"]
    assert is_in("Сегодня река очень широкая и глубокая", "ru") and not is_in(
        "Сьогодні річка дуже широка і глибока", "ru"
    )
    assert not is_in("", "en") and not is_in("12 34", "hi")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        "*" * 60_000,
        "<<" * 40_000,
        "a." * 60_000,
        "p." * 60_000,
        " \n" * 60_000,
        "(" * 50_000 + ",",
        "```" * 30_000,
        "```" + " \n" * 60_000 + "x",
    ],
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    import time

    begun = time.process_time()
    for name, given, *_ in CASES:
        if not name.startswith(("language", "change_case:english")):
            value(text, (name, given))
    assert time.process_time() - begun < 5.0
