"""Words and their kinds: what is held out is made of words that are nowhere else, and the cold start tells no answer."""

from __future__ import annotations

import pytest

from broker.errors import DataError
from learner.data.kinds import KINDS, WordKindDocuments, WordKinds, words


def test_no_held_out_word_is_ever_in_another_question() -> None:
    held, other = WordKinds(seed=1, held_out=True), WordKinds(seed=2)
    shown = [{str(w) for i in range(500) for w in source.row(i).metadata["options"]} for source in (held, other)]
    assert not shown[0] & shown[1] and len(shown[0]) > 40 and len(shown[1]) > 80
    for kind in KINDS:
        assert len(words(kind, True)) >= 3 and len(words(kind, False)) >= 5


def test_every_word_is_of_one_kind() -> None:
    everything = [word for kind in KINDS for word in KINDS[kind].split()]
    assert len(everything) == len(set(everything))


def test_a_row_is_always_the_same_and_asks_what_its_answer_says() -> None:
    source = WordKinds(seed=3)
    row = source.row(17)
    assert row == WordKinds(seed=3).row(17) != source.row(18)
    kind = str(row.metadata["kind"])
    assert row.answer in KINDS[kind].split() and kind in row.messages[-1].content
    assert sum(word in KINDS[kind].split() for word in row.metadata["options"]) == 1  # type: ignore[union-attr]


def test_the_cold_start_is_right_as_often_as_a_guess() -> None:
    source, right = WordKindDocuments(seed=5), 0
    for number in range(800):
        row, document = source.row(number), source.document(number, 1.0)
        said = document.messages[-1].content
        assert document.messages[:-1] == row.messages and said in row.metadata["options"]  # type: ignore[operator]
        right += said == row.answer
    assert 0.2 < right / 800 < 0.3


@pytest.mark.parametrize("choices", [1, 13])
def test_a_number_of_choices_that_cannot_be_is_refused(choices: int) -> None:
    with pytest.raises(DataError, match=f"choices = {choices} must be from 2 to 12"):
        WordKinds(choices=choices)
