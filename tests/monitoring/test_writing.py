"""What is counted of how a response is written, and what of it is prose."""

from __future__ import annotations

import time

import pytest

from monitoring.writing import (
    foreign_share,
    prose,
    reflective_counts,
    reflective_words,
    repeated_ngrams,
    script_words,
    scripts,
    terms,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("we add `a b c` here", "we add here"),
        ("we ```python\nx = 1\n``` add", "we add"),
        ("we ~~~ code never closed", "we"),
        ("so $x+y$ and $$z$$ and \\(u\\) and \\[v\\] end", "so and and and end"),
        ("\\begin{align*} a &= b \\\\ c \\end{align*} end", "end"),
        ("let \\[ a \\text{where b is} c \\] end", "let where b is end"),
        ("\\begin{itemize} kept", "{itemize} kept"),
        ("costs \\[ and is never closed", "costs \\[ and is never closed"),
        ("see https://x.org/y?z=1 or src/a/b.py now", "see or now"),
        ("<think>so</think>\n<answer>5</answer>", "so 5"),
        ("a/b is no path", "a/b is no path"),
    ],
)
def test_prose_is_what_is_left_without_code_and_formulas(text: str, wanted: str) -> None:
    assert " ".join(prose(text).split()) == wanted


def test_words_are_told_by_script() -> None:
    assert script_words("So 我们 и x") == [
        ("Latin", "So"),
        ("Han", "我"),
        ("Han", "们"),
        ("Cyrillic", "и"),
        ("Latin", "x"),
    ]
    assert scripts("So 我们") == {"Latin": 1, "Han": 2}
    assert terms("Wait, x1 = 42我们!") == ["wait", ",", "x", "1", "=", "42", "我", "们", "!"]


def test_reflective_words_are_counted_whatever_their_case() -> None:
    assert reflective_counts("Wait, wait. BUT check; waiting is none") == {"wait": 2, "but": 1, "check": 1}
    assert reflective_words("Wait, but") == {"wait", "but"}


@pytest.mark.parametrize(
    "piece",
    [
        "$",
        "\\[",
        "```",
        "`",
        "a/",
        "a.b-",
        "\\text{",
        "<",
        "\\begin{align}",
        "\\end{align}",
        "http",
        "https://",
        "\\",
        "a",
    ],
)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    text, started = piece * (100_000 // len(piece)), time.process_time()
    prose(text), terms(text), script_words(text), reflective_counts(text)
    assert time.process_time() - started < 2.0


def test_ngrams_that_stood_before_are_counted_in_any_script_and_in_words_without_an_end() -> None:
    assert repeated_ngrams("a b c a b c", 2) == (2, 5), "ab and bc come twice"
    assert repeated_ngrams("a b", 3) == (0, 0), "shorter than one"
    assert repeated_ngrams("3+7=0, 3+7=0", 3) == (3, 9), "numbers and signs are terms"
    assert repeated_ngrams("\u597d" * 10, 2) == (8, 9)
    repeated, total = repeated_ngrams("ha" * 4000, 4)
    assert repeated == total - 1 == 996, "a run of letters is cut"
    began = time.process_time()
    repeated_ngrams("\u597d" * 200_000, 8)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("so it is seven", 0.0),
        ("so \u0438 so \u0438", 0.5),
        ("so so so \u0438", 0.25),
        ("<think>\u0438 3+7=0, \u0438 x \\boxed{7}</think>", 0.0),
        ("\u8fd9\u662f\u3042", 0.0),
        ("\u8fd9\u662f `code in another` \u597d", 0.0),
    ],
)
def test_words_of_another_script_than_most_are_foreign(text: str, share: float) -> None:
    assert foreign_share(text) == pytest.approx(share)
