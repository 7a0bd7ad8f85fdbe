"""Language consistency: which words count, and whose they are."""

from __future__ import annotations

import pytest
from spoken import spoken

from broker.errors import MessageError
from rewarders.language import LanguageConsistency
from rewarders.rewarder import Reward

pytestmark = pytest.mark.lane("languages and rubrics")  # seconds to load

ENGLISH = "What is the sum of three and four? Explain each step."
CHINESE = "请问三加四等于多少？请写出步骤。"
GERMAN = "Was ist die Summe von drei und vier? Erkläre jeden Schritt."
RUSSIAN = "Чему равна сумма трёх и четырёх? Объясни каждый шаг."


def value(question: str, thought: str, **options: object) -> float | None:
    reward = LanguageConsistency(**options)(spoken(f"<think>{thought}</think><answer>7</answer>", question))  # type: ignore[arg-type]
    assert reward is None or isinstance(reward, Reward)
    return None if reward is None else reward.value


@pytest.mark.long
@pytest.mark.parametrize(
    ("question", "thought"),
    [
        (ENGLISH, "First we add both numbers. So the result is seven. Wait, let me check that again."),
        (GERMAN, "Zuerst addieren wir beide Zahlen. Das Ergebnis ist also sieben, und das stimmt."),
        (CHINESE, "首先我们把两个数相加，然后得到结果是七。"),
        (RUSSIAN, "Сначала сложим оба числа. Получаем семь, и это верно."),
        ("三つの数の和はいくつですか。", "まず数字を足します。答えは七です。"),
        ("¿Cuál es la suma de tres y cuatro?", "Primero sumamos los dos números. El resultado es siete, y está bien."),
        (
            "Quelle est la somme de trois et quatre ?",
            "D'abord nous additionnons les deux nombres. Le résultat est donc sept.",
        ),
    ],
)
def test_a_thought_in_the_language_of_the_question_is_whole(question: str, thought: str) -> None:
    assert value(question, thought) == 1.0


@pytest.mark.long
@pytest.mark.parametrize(
    ("question", "thought", "wanted"),
    [
        (ENGLISH, "First 我们把两个数相加。 So the result is seven.", 6 / 14),
        (ENGLISH, "We add both numbers here. Dann addieren wir die beiden Zahlen und erhalten sieben.", 5 / 14),
        (RUSSIAN, "Сложим числа. Then we get the number seven here.", 2 / 9),
        (CHINESE, "首先我们 need to add the numbers", 4 / 9),
        (GERMAN, "First we add the two numbers and then we write the result down.", 0.0),
    ],
)
def test_words_of_other_languages_count_against_it(question: str, thought: str, wanted: float) -> None:
    assert value(question, thought) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "aside",
    [
        "$x + y = \\sin(z)$", "\\[ \\sum_{i} value_i \\]", "\\begin{align*} abc &= def \\end{align*}", "`sum(first, second)`", "```python\nfor number in numbers:\n    print(number)\n```",
        "GPU", "numpy", "HTTP", "x", "f(x)", "y_1", "fooBar", "list_of_numbers", "3.14", "https://example.org/some/page", "data/file/name.txt", "log", "\\alpha", "β", "~~~\ncode here\n~~~", "sort()",
    ],
)  # fmt: skip
def test_what_is_no_language_does_not_count(aside: str) -> None:
    assert value(CHINESE, f"首先我们把 {aside} 相加，然后得到结果。") == 1.0


def test_words_in_a_formula_count_and_a_formula_that_is_not_closed_hides_nothing() -> None:
    assert value(CHINESE, "我们 $x \\text{where this is hidden}$ 得到") == pytest.approx(4 / 8)
    assert value(CHINESE, "我们得到 \\[ and all the rest is hidden") == pytest.approx(4 / 10)
    assert value(CHINESE, "我们得到 $ and all the rest is hidden") == pytest.approx(4 / 10)


def test_the_target_is_the_option_or_the_metadata_or_the_question() -> None:
    said = "<think>First we add both numbers here.</think>7"
    assert LanguageConsistency()(spoken(said, CHINESE)).value == 0.0  # type: ignore[union-attr]
    assert LanguageConsistency(language="en")(spoken(said, CHINESE)).value == 1.0  # type: ignore[union-attr]
    assert LanguageConsistency()(spoken(said, CHINESE, metadata={"language": "en"})).value == 1.0  # type: ignore[union-attr]
    assert (
        LanguageConsistency(column="lang")(spoken(said, CHINESE, metadata={"lang": "en", "language": "zh"})).value
        == 1.0
    )  # type: ignore[union-attr]
    assert LanguageConsistency()(spoken(said, "2+2=?")) is None, "the language of a sum cannot be told"


def test_a_script_may_be_the_target_and_then_no_detector_is_asked() -> None:
    assert value("?", "слово and слово", language="Cyrillic") == pytest.approx(2 / 3)
    assert value("Какие буквы?", "слово and слово", by_script=True) == pytest.approx(2 / 3)
    assert value(ENGLISH, "Das ist alles in anderer Sprache geschrieben.", by_script=True) == 1.0


def test_a_thought_without_words_has_the_value_that_is_asked_for() -> None:
    assert value(ENGLISH, "3 + 4 = 7") == 0.0
    assert value(ENGLISH, "3 + 4 = 7", wordless=1.0) == 1.0


def test_all_of_a_long_thought_is_read() -> None:
    assert value(CHINESE, "一" * 30_000 + " words" * 30_000) == pytest.approx(0.5)


def test_short_english_words_between_others_are_not_taken_for_another_language() -> None:
    assert value(ENGLISH, "Hmm. Okay. Wait, no. So, yes. Right. Then it is seven. Good. Done.") == 1.0


def test_further_terms_do_not_count() -> None:
    assert value(CHINESE, "使用 softmax 函数", terms=("Softmax",)) == 1.0
    assert value(CHINESE, "使用 softmax 函数") == pytest.approx(4 / 5)


def test_an_unknown_language_says_what_is_known() -> None:
    with pytest.raises(MessageError, match="language = 'englisch'"):
        LanguageConsistency(language="englisch")
