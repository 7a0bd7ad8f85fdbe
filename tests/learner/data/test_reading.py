"""Odd documents are left out of their step and buried; the others are trained on, and what is left out is the same after a restart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from broker.errors import DataError
from learner.data.documents import DocumentTokenizer
from learner.data.files import read_table
from learner.data.mixture import InOrder, MixedDocuments, Part
from learner.data.reading import LOOKED, DocumentReader, Found, Memory, refuse_many
from learner.data.selection import selected
from learner.data.source import Document, Span
from learner.data.tables import TableDocuments
from learner.model.load import load_tokenizer

TINY = str(Path(__file__).resolve().parents[3] / "recipes" / "tiny_model")
GOOD = {"text": "1+1=2"}


def documents(path: Path, rows: Sequence[Any], **options: Any) -> TableDocuments:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return TableDocuments(read_table(str(path)), str(path), **options)


class Letters(Memory):
    """Keeps what was buried, and replays what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.again: list[tuple[int, int]] = []

    def replayed(self) -> list[tuple[int, int]]:
        found, self.again = self.again, []
        return found


def reader(source: Any, graves: Memory, most: float = 1.0, **options: Any) -> DocumentReader:
    reading = source if isinstance(source, MixedDocuments) else InOrder("corpus", source)
    return DocumentReader(reading, DocumentTokenizer(load_tokenizer(TINY)), graves, most=most, **options)


def gaps(found: Found) -> list[bool]:
    """Of each document of the step, whether it was left out."""
    return [not len(tokens) for tokens in found.tokens]


ODD = [
    ({"text": ["a", "list"]}, r"d.jsonl row 1 column 'text' is a list"),
    ({"text": ""}, r"d.jsonl row 1 column 'text': a document without text"),
    ({"txet": "misspelt"}, r"d.jsonl row 1 has no column 'prompt'; it has txet"),
    (b"{'python': 1}", r"d.jsonl line 2 is no JSON"),
    (b'"only text"', r"d.jsonl line 2 is a str; it must be an object"),
    (b'{"text": "\xff\xfe"}', r"d.jsonl line 2 is no JSON"),
    ({"text": "half of a pair \ud800"}, r"d.jsonl row 1 column 'text': the text cannot be written in tokens"),
    ({"prompt": "who?", "response": 3}, r"d.jsonl row 1 column 'response' is a int"),
    ({"prompt": [], "response": "a"}, r"d.jsonl row 1 column 'prompt' is empty"),
    ({"messages": [{"role": "user"}]}, r"row 1 column 'messages': a message must be {role, content}"),
    ({"messages": [{"role": "a b", "content": "x"}, {"role": "assistant", "content": "y"}]},
     r"row 1 column 'messages': role 'a b' is no name"),
    ({"messages": [{"role": "assistant", "content": "y", "train": "no"}]}, r"row 1: train \(or weight\)"),
    ({"text": "9" * 500}, r"it has \d+ tokens, and max_tokens is 100"),
]  # fmt: skip


@pytest.mark.parametrize("row,why", ODD, ids=[why[-24:] for _, why in ODD])
def test_an_odd_row_is_buried_with_file_row_and_column_and_the_others_are_read(
    tmp_path: Path, row: Any, why: str
) -> None:
    graves = Memory()
    reading = reader(documents(tmp_path / "d.jsonl", [GOOD, row, GOOD]), graves, longest=(100, "max_tokens"))
    found = reading.read(0, range(3), 1.0)
    assert gaps(found) == [False, True, False] and found.places == (("corpus", 0), ("corpus", 2))
    (odd,) = graves.odd.values()
    assert (odd.number, odd.data, odd.row, reading.odd) == (1, "corpus", 1, 1)
    with pytest.raises(DataError, match=why):
        raise DataError(odd.why)


def test_a_source_that_raises_anything_is_an_odd_row() -> None:
    class Mine:
        size = None

        def document(self, number: int, level: float) -> Document:
            return Document(spans=(Span(str(1 // (number - 2)) + " 1", True),))

    graves = Memory()
    assert gaps(reader(Mine(), graves).read(0, range(4), 1.0)) == [False, False, True, False]
    assert "[data.corpus] row 2: ZeroDivisionError" in graves.odd[2].why


def test_what_was_buried_is_left_out_again_though_it_is_mended_and_comes_in_the_next_pass(tmp_path: Path) -> None:
    path, graves = tmp_path / "d.jsonl", Memory()
    reading = reader(documents(path, [GOOD, {"text": 3}]), graves)
    assert gaps(reading.read(0, range(2), 1.0)) == [False, True]
    documents(path, [GOOD, {"text": "three"}])
    again = reader(documents(path, [GOOD, {"text": "three"}]), graves)
    assert gaps(again.read(0, range(2), 1.0)) == [False, True] and again.odd == 1, "the step is done again as it was"
    assert gaps(again.read(1, range(2, 4), 1.0)) == [False, False], "in the next pass its row is read anew"


def test_a_file_that_is_mended_while_it_is_read_gives_its_rows_as_they_are_now(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    source = documents(path, [{"text": "short"}, {"text": 3}, {"text": "last"}])
    documents(path, [{"text": "a longer row than before"}, {"text": "mended"}, {"text": "last"}])
    assert [source.document(n, 1.0).spans[0].text for n in (1, 2)] == ["mended", "last"]
    documents(path, [{"text": "one is left"}])
    assert source.size == 3
    with pytest.raises(DataError, match="row 2 is gone: the file has 1 rows now"):
        source.document(2, 1.0)
    path.unlink()
    with pytest.raises(DataError, match="row 0 cannot be read: No such file"):
        source.document(0, 1.0)


def test_a_replayed_document_joins_one_step_and_a_kept_state_says_which(tmp_path: Path) -> None:
    path, graves = tmp_path / "d.jsonl", Letters()
    reading = reader(documents(path, [GOOD, {"text": 3}, GOOD, GOOD]), graves)
    reading.read(0, range(2), 1.0)
    assert not reading.plan_again(1)
    documents(path, [GOOD, {"text": "1+2=3"}, GOOD, GOOD])
    graves.again = [(17, 1)]
    assert reading.plan_again(1)
    kept = reading.state_dict()
    assert reading.read(1, range(2, 4), 1.0).places == (("corpus", 2), ("corpus", 3), ("corpus", 1))
    after = reader(documents(path, [GOOD, {"text": "1+2=3"}, GOOD, GOOD]), graves)
    after.load_state_dict(kept)
    graves.again = [(17, 1)]  # a restart reads all dead letters again
    assert not after.plan_again(2) and after.odd == 1
    assert len(after.read(1, range(2, 4), 1.0).documents) == 3 and len(after.read(2, range(4, 6), 1.0).documents) == 2


def test_too_many_odd_rows_are_an_error_of_the_file_and_none_of_the_step_is_buried(tmp_path: Path) -> None:
    graves = Memory()
    reading = reader(documents(tmp_path / "d.jsonl", [GOOD] * 18 + [{"text": 3}] * 3), graves, most=0.1)
    reading.read(0, range(20), 1.0)
    assert sorted(graves.odd) == [18, 19]
    with pytest.raises(
        DataError,
        match=r"\[data.corpus\] 3 of 21 rows cannot be .* max_odd = 0.1; the last one: .*row 20 column 'text'",
    ):
        reading.read(1, range(20, 21), 1.0)
    assert sorted(graves.odd) == [18, 19], "a mended file is read on from here"


@pytest.mark.parametrize(
    "odd,looked,size,most,refused",
    [(1, 4, None, 0.0, True), (6, 6, None, 0.1, False), (7, 7, None, 0.1, True), (7, LOOKED, 10**6, 0.1, True),
     (100, 1001, 10**6, 0.1, False), (3, 3, 3, 1.0, True), (2, 3, 3, 1.0, False), (1, 10, 10, 0.1, False)],
)  # fmt: skip
def test_the_limit_is_a_share_of_enough_rows(
    odd: int, looked: int, size: int | None, most: float, refused: bool
) -> None:
    try:
        refuse_many(odd, looked, size, most, "[data.x]", "why")
    except DataError:
        assert refused
    else:
        assert not refused


def test_an_odd_row_of_a_mixture_is_named_by_its_own_source_and_row(tmp_path: Path) -> None:
    first = documents(tmp_path / "a.jsonl", [GOOD] * 3)
    second = documents(tmp_path / "b.jsonl", [{"text": "dropped"}, GOOD, {"text": 3}])
    mixed = MixedDocuments([Part("a", first), Part("b", selected(second, [1, 2], True))], 0)
    graves = Memory()
    reader(mixed, graves).read(0, range(5), 1.0)
    (odd,) = graves.odd.values()
    assert (odd.data, odd.row) == ("b", 1) and "b.jsonl row 2 column 'text'" in odd.why, (
        "rows of a selection count anew"
    )
