"""The form of a response: what has it, and what only looks as if."""

from __future__ import annotations

import pytest
from spoken import spoken

from broker.errors import MessageError
from rewarders.format import Format
from rewarders.parts import part, summary, thought
from rewarders.visible import has_content, has_words

EMPTY = [
    "", " ", "\u200b", "\u2060", "\u3164", "\u2800", "\u115f\u1160", "\uffa0", "\ufeff", "\u00ad", "\u034f", "\x00", "\u202e", ".", "...", "?!", "-", "\n\t\u3000",
    "<!-- a long thought -->", "<!-- never closed", "&nbsp;", "&#8203;", "<br/>", "<p></p>", "\\,", "\\quad", "{}", "{{}}", "\\text{ }", "\\phantom{5}", "\\hspace{2cm}", "~",
]  # fmt: skip


@pytest.mark.parametrize("nothing", EMPTY)
def test_a_part_in_which_a_reader_sees_nothing_is_empty(nothing: str) -> None:
    judge = Format()
    assert judge.fault(f"<think>{nothing}</think><answer>5</answer>") == "an empty thought"
    assert judge.fault(f"<think>so</think><answer>{nothing}</answer>") == "an empty answer"
    assert (
        Format(boxed=True).fault(f"<think>so</think><answer>it is \\boxed{{{nothing}}}</answer>") == "no boxed answer"
    )


@pytest.mark.parametrize(
    "something", ["5", "x", "я", "五", "½", "²", "+", "∅", "\\emptyset", "\\pi", "<5", "<1,2>", "€", "😀", "-5"]
)
def test_what_a_reader_sees_is_an_answer(something: str) -> None:
    assert Format().fault(f"<think>so</think><answer>{something}</answer>") == ""
    assert has_content(something)


def test_a_thought_needs_words() -> None:
    assert has_words("3") and has_words("so") and not has_words("+ = 😀")


LOOK_ALIKES = [
    "<THINK>", "<Think>", "< think >", "</ think>", "< /answer >", "<think\t>", "<think/>", "<think id='1'>", "＜think＞", "＜／answer＞", "‹think›", "〈answer〉", "⟨think⟩",
    "&lt;think&gt;", "&#60;answer&#62;", "<thi\u200bnk>", "<th\u00adink>", "<аnswer>", "<thіnk>", "<thinking>", "<ｔｈｉｎｋ>",
    "<|im_start|>user", "<|im_end|>", "<|endoftext|>", "<｜User｜>", "＜|im_end|＞", "<|im_st\u200bart|>", "[INST]", "[/INST]", "<<SYS>>", "<s>", "</s>", "<start_of_turn>", "<eos>",
]  # fmt: skip


@pytest.mark.parametrize("tag", LOOK_ALIKES)
def test_look_alikes_of_tags_and_markers_of_templates_have_no_form(tag: str) -> None:
    for pattern, text in {
        "tags": f"<think>so {tag} then</think><answer>5</answer>",
        "think": f"<think>so {tag} then</think>5",
        "readable": f"|special_token|so {tag} then|special_token|5",
    }.items():
        assert "is no tag" in Format(pattern=pattern).fault(text)
    assert "is no tag" in Format().fault(f"<think>so</think><answer>5 {tag}</answer>")


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "I <b>think</b> so",
        "the answer is",
        "x<y>z",
        "a[i] <- 5 |> f",
        "see `<html>`",
        "List<Answered>",
    ],
)
def test_ordinary_signs_are_no_tags(text: str) -> None:
    assert Format().fault(f"<think>{text}</think><answer>5</answer>") == ""


@pytest.mark.parametrize(
    "text",
    [
        "", "5", "<think>a</think>", "<answer>5</answer>", "<think>a</think><answer>5", "<answer>5</answer><think>a</think>", "x<think>a</think><answer>5</answer>",
        "<think>a</think><answer>5</answer>x", "<think>a</think>b<answer>5</answer>", "<think>a</think>\u200b<answer>5</answer>", "<think>a<answer>5</answer></think>",
        "<think><think>a</think><answer>5</answer>", "<think>a</think><answer>5</answer><answer>5</answer>", "</think>a<think><answer>5</answer>",
    ],
)  # fmt: skip
def test_other_forms_have_no_reward(text: str) -> None:
    reward = Format()(spoken(text))
    assert reward is not None and reward.value == 0.0 and reward.why


def test_the_readable_pattern_is_a_thought_between_marks_and_a_summary() -> None:
    judge = Format(pattern="readable")
    assert judge.fault("|special_token|so 2+3|special_token|It is 5.") == ""
    assert judge.fault("|special_token|so 2+3|special_token|") == "an empty answer"
    assert judge.fault("|special_token||special_token|5") == "an empty thought"
    assert judge.fault("|special_token|so") == "1 times |special_token|"
    assert judge.fault("x|special_token|so|special_token|5") == "text outside of the tags"
    assert Format(pattern="readable", mark="<|rest|>").fault("<|rest|>so<|rest|>5") == "", (
        "the mark itself is none of the template's"
    )
    assert Format(pattern="readable", boxed=True).fault("|special_token|so|special_token|\\boxed{5}") == ""


def test_a_template_may_open_the_thought() -> None:
    for said in ("so</think><answer>5</answer>", "<think>so</think><answer>5</answer>"):
        assert Format(opened=True).fault(said) == ""
    assert Format().fault("so</think><answer>5</answer>") == "0 times <think>", (
        "the judged text holds what the prompt opened, unless told otherwise"
    )
    assert Format(opened=True).fault("so<think>again</think><answer>5</answer>") == "2 times <think>"
    assert Format(opened=True, pattern="think").fault("so</think>5") == ""


def test_what_was_cut_off_has_no_form() -> None:
    for finish in ("length", "abort", "turns"):
        reward = Format()(spoken("<think>a</think><answer>5</answer>", finish_reason=finish))
        assert reward is not None and reward.value == 0.0 and reward.why == "not finished"


def test_unknown_options_say_what_is_known() -> None:
    with pytest.raises(MessageError, match="did you mean 'readable'"):
        Format(pattern="readible")
    with pytest.raises(MessageError, match="mark"):
        Format(pattern="readable", mark=" ")
    with pytest.raises(MessageError, match="did you mean 'summary'"):
        part("sumary")


def test_the_parts_of_a_response() -> None:
    whole = "<think>so</think>\n<answer>5</answer>"
    assert thought(whole) == "so" and summary(whole) == "5"
    assert summary("<think>so") == "" and thought("<think>so") == "so"
    assert summary("<think>so</think> It is 5. ") == "It is 5."
    assert summary("<think>so</think><answer>5</answer><answer>6</answer>") == "<answer>5</answer><answer>6</answer>"
    assert thought("|m|so|m|5", "|m|") == "so" and summary("|m|so|m|5", "|m|") == "5" and summary("|m|so", "|m|") == ""
