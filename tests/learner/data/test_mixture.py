"""Several sources as one: every document in its turn, by weights or once a pass; conversations of several turns with their masks."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ring import TINY

from broker.errors import DataError
from broker.messages import ChatMessage
from learner.data.documents import DocumentTokenizer
from learner.data.mixture import MixedDocuments, Part
from learner.data.source import Document
from learner.data.tables import TableDocuments
from learner.data.turns import Turns, turns
from learner.model.load import load_tokenizer


@dataclass(frozen=True)
class Numbered:
    name: str
    size: int | None = None

    def document(self, number: int, level: float) -> Document:
        return Document(messages=(ChatMessage("user", self.name), ChatMessage("assistant", str(number))))


def said(mixed: MixedDocuments, numbers: range) -> list[tuple[str, str]]:
    return [(d.messages[0].content, d.messages[1].content) for d in (mixed.document(n, 1.0) for n in numbers)]


def test_a_pass_over_sources_with_an_end_reads_each_document_once_in_another_order_every_time() -> None:
    mixed = MixedDocuments([Part("a", Numbered("a", 6)), Part("b", Numbered("b", 2))], seed=1)
    assert mixed.size == 8
    first, second = said(mixed, range(8)), said(mixed, range(8, 16))
    assert set(first) == set(second) == {("a", str(n)) for n in range(6)} | {("b", "0"), ("b", "1")}
    assert first != second
    assert sorted(i for i, (name, _) in enumerate(first) if name == "b") == [3, 7], "the smaller one is spread evenly"
    again = MixedDocuments([Part("a", Numbered("a", 6)), Part("b", Numbered("b", 2))], seed=1)
    assert said(again, range(15, 16)) == said(mixed, range(15, 16)), "it follows from the number alone"


def test_weights_hold_at_any_time_and_sources_without_end_need_them() -> None:
    mixed = MixedDocuments([Part("a", Numbered("a"), 3.0), Part("b", Numbered("b", 2), 1.0)], seed=0)
    assert mixed.size is None
    for until in (4, 8, 40):
        counts = Counter(name for name, _ in said(mixed, range(until)))
        assert counts == {"a": until * 3 // 4, "b": until // 4}
    with pytest.raises(DataError, match=r"\[data\.a\] has no end: give the sources weights"):
        MixedDocuments([Part("a", Numbered("a")), Part("b", Numbered("b", 2))], seed=0)
    with pytest.raises(DataError, match=r"\[data\.b\] has no documents"):
        MixedDocuments([Part("b", Numbered("b", 0))], seed=0)


def test_turns_are_kept_and_go_to_the_first_of_equals() -> None:
    assert [turns((1.0, 1.0)).of(n) for n in range(4)] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [Turns((1.0, 3.0)).of(n)[0] for n in range(8)] == [1, 1, 0, 1, 1, 1, 0, 1]


def chat(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> TableDocuments:
    from learner.data.files import JsonLines

    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TableDocuments(JsonLines(tmp_path / "chat.jsonl"), "chat", **options)


TURNS = [
    {"role": "user", "content": "3"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "5"},
    {"role": "assistant", "content": "6"},
]


@pytest.mark.parametrize(
    ("row", "options", "wanted"),
    [
        ({"messages": TURNS}, {}, "46"),
        ({"messages": TURNS}, {"train": "last"}, "6"),
        ({"messages": TURNS}, {"train": "last", "system": "9"}, "6"),
        ({"messages": [TURNS[0], TURNS[1] | {"train": False}, *TURNS[2:]]}, {}, "6"),
        ({"messages": [TURNS[0], TURNS[1] | {"weight": 0}, *TURNS[2:]]}, {"system": "9"}, "6"),
        ({"messages": [*TURNS[:3], TURNS[3] | {"weight": 1}]}, {}, "46"),
        ({"messages": TURNS[:3], "response": "7"}, {"train": "last"}, "7"),
        ({"prompt": "3", "response": "7"}, {"train": "last"}, "7"),
        ({"prompt": TURNS[:3], "response": "7"}, {}, "47"),
    ],
)
def test_what_of_a_conversation_is_trained(tmp_path: Path, row: dict[str, Any], options: Any, wanted: str) -> None:
    document = chat(tmp_path, row, **options).document(0, 1.0)
    tokenizer = load_tokenizer(str(TINY))
    found = DocumentTokenizer(tokenizer).tokenize(document)
    text = tokenizer.decode([int(t) for t in found.tokens[found.trained]])
    assert text == "".join(f"{digit}<|im_end|>" for digit in wanted)


def test_masks_that_train_nothing_or_are_none_are_refused_with_the_row(tmp_path: Path) -> None:
    untrained = {"messages": [TURNS[0], TURNS[1] | {"train": False}]}
    with pytest.raises(DataError, match="row 0: no reply of it is to be trained"):
        chat(tmp_path, untrained).document(0, 1.0)
    with pytest.raises(DataError, match=r"row 0: train \(or weight\) of a message is 'yes'"):
        chat(tmp_path, {"messages": [TURNS[0], TURNS[1] | {"train": "yes"}]}).document(0, 1.0)
    with pytest.raises(DataError, match="train = 'first'; use 'all'"):
        chat(tmp_path, untrained, train="first")


def test_a_document_may_have_options_of_the_template_of_its_own() -> None:
    tokenizer = load_tokenizer(str(TINY))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if quiet %}{{ '<think>' }}{% endif %}{% endif %}"
    )
    messages = (ChatMessage("user", "3"), ChatMessage("assistant", "<think>4</think>5"))
    words = DocumentTokenizer(tokenizer)
    plain, quiet = Document(messages=messages), Document(messages=messages, template={"quiet": True})
    lengths = [int(words.tokenize(d).trained.sum()) for d in (plain, quiet, plain)]
    assert lengths[0] == lengths[2] == lengths[1] + 1, "what the template opens is not trained"
