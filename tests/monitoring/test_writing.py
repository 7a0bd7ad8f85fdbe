"""What is counted of how a response is written, and what of it is prose."""

from __future__ import annotations

import time

import pytest

from monitoring.writing import prose, reflective_counts, reflective_words, script_words, scripts, terms


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
