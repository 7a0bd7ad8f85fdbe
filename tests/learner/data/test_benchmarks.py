"""Each published format: rows of it are read, the reference answer is worth 1 to the real rewarder, a wrong one 0, and what is odd is named."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from answercases import sample

from broker.errors import DataError, RunFileError
from broker.runfile import RunFile
from learner.data.benchmarks.livecodebench import text_of_pickle, unpacked
from learner.data.benchmarks.multiple_choice import Gpqa
from learner.data.registry import open_documents, open_prompts
from learner.data.source import PromptRow
from learner.tables import SourceTable
from rewarders.choice import Choice
from rewarders.code import CodeTests
from rewarders.instructions import Instructions
from rewarders.math import MathAccuracy

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "benchmarks"
CLASSES = {
    "aime.jsonl": "competition:Aime",
    "math500.jsonl": "competition:Math500",
    "gpqa.csv": "multiple_choice:Gpqa",
    "mmlu.jsonl": "multiple_choice:Mmlu",
    "livecodebench.jsonl": "livecodebench:LiveCodeBench",
    "ifeval.jsonl": "instructions:IfEval",
    "simpleqa.csv": "facts:SimpleQa",
}


def benchmark(path: str | Path, use: str = "", **options: Any) -> Any:
    use = "learner.data.benchmarks." + (use or CLASSES[Path(path).name])
    table = SourceTable.model_validate({"use": use, "path": str(path), **options})
    return open_prompts("asked", table, RunFile({}, FIXTURES, FIXTURES / "run.toml"))


def written(directory: Path, **row: Any) -> Path:
    (directory / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return directory / "rows.jsonl"


def value(judge: Any, row: PromptRow, response: str) -> float:
    reward = judge(replace(sample(response, row.answer, metadata=dict(row.metadata)), messages=row.messages))
    assert reward is not None
    return float(reward.value)


def boxed(text: str) -> str:
    return f"<think>so it is</think>\\boxed{{{text}}}"


@pytest.mark.parametrize("name", ["aime.jsonl", "math500.jsonl"])
def test_competitions_are_judged_as_mathematics(name: str) -> None:
    source = benchmark(name)
    for row in map(source.row, range(source.size)):
        assert row.answer and row.messages[-1].content.endswith("\\boxed{}.")
        assert value(MathAccuracy(), row, boxed(row.answer)) == 1.0
        assert value(MathAccuracy(), row, boxed("998")) == 0.0


def test_rows_of_aime_in_their_several_spellings() -> None:
    rows = [benchmark("aime.jsonl").row(n) for n in range(4)]
    assert [r.answer for r in rows] == ["33", "729", "5", "144"]
    assert [r.metadata.get("date") for r in rows] == ["2024-01-01", "2024-01-01", "2025-01-01", None]
    assert value(MathAccuracy(), rows[0], boxed("033")) == 1.0
    assert benchmark("math500.jsonl").row(1).kind == "Algebra"


@pytest.mark.parametrize("name", ["gpqa.csv", "mmlu.jsonl"])
def test_options_are_judged_by_letter_and_by_text(name: str) -> None:
    source = benchmark(name)
    for row in map(source.row, range(source.size)):
        options, letter = row.metadata["options"], str(row.answer)
        right = options["ABCD".index(letter)]
        for answer in (letter, f"({letter})", right):
            assert value(Choice(), row, boxed(answer)) == 1.0, answer
        for wrong in set("ABCD") - {letter}:
            assert value(Choice(), row, boxed(wrong)) == 0.0
        assert all(f"{at}) {option}" in row.messages[-1].content for at, option in zip("ABCD", options, strict=True))


def test_gpqas_options_stand_in_an_order_that_the_seed_decides() -> None:
    first, again, other = benchmark("gpqa.csv"), benchmark("gpqa.csv"), benchmark("gpqa.csv", seed=1)
    order = [first.row(n).metadata["options"] for n in range(4)]
    assert order == [again.row(n).metadata["options"] for n in range(4)]
    assert order != [other.row(n).metadata["options"] for n in range(4)]
    assert len({first.row(n).answer for n in range(4)}) > 1, "the right option is not always the same letter"
    moved = Gpqa(rows=[first.rows[3]], where="x")
    assert moved.row(0) == first.row(3), "a row keeps its order wherever it stands"


ADD = "print(sum(map(int, input().split())))"
VOWELS = (
    "class Solution:\n    def countVowels(self, word, most):\n        return min(most, sum(c in 'aeiou' for c in word))"
)


@pytest.mark.long
def test_livecodebench_is_judged_by_its_hidden_tests() -> None:
    source, judge = benchmark("livecodebench.jsonl"), CodeTests(seconds=3.0, total=60.0)
    rows = [source.row(n) for n in range(3)]
    assert [len(r.metadata["tests"]) for r in rows] == [3, 3, 2]
    assert [r.metadata["date"] for r in rows] == ["2024-03-02", "2024-09-14", "2025-01-11"]
    assert "class Solution" in rows[1].messages[-1].content and "42" not in rows[0].messages[-1].content
    for row, right in zip(rows, (ADD, VOWELS, "print(input())"), strict=True):
        assert value(judge, row, f"Here:\n```python\n{right}\n```") == 1.0
        assert value(judge, row, "Here:\n```python\nprint(3)\n```") == 0.0
    guess = VOWELS.replace("min(most, sum(c in 'aeiou' for c in word))", "2")
    assert value(judge, rows[1], f"```python\n{guess}\n```") == 0.0, "the public test alone is passed"
    assert len(benchmark("livecodebench.jsonl", public=False).row(0).metadata["tests"]) == 2
    assert len(benchmark("livecodebench.jsonl", most_tests=1).row(0).metadata["tests"]) == 1


def squeezed(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw)).decode()


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "GLOBAL is refused"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "STACK_GLOBAL is refused"),
        (b"\x80\x04]\x94(K\x01e.", "is refused"),
        (b"\x80\x04\x8c\x01a\x8c\x01b.", "2 texts"),
        (b"\x80\x04.", "0 texts"),
        (b"\x80\x04\x8c\xffab", "column 'private_test_cases'"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa.", "column 'private_test_cases'"),
        (b"\xff\xfe", "column 'private_test_cases'"),
    ],
)
def test_a_pickle_of_anything_but_a_text_is_refused_unread(raw: bytes, told: str, tmp_path: Path) -> None:
    path = written(tmp_path, question_content="?", private_test_cases=squeezed(raw), metadata="{}")
    with pytest.raises(DataError, match=told):
        benchmark(path, "livecodebench:LiveCodeBench").row(0)


def test_packed_texts_in_every_protocol_and_bombs() -> None:
    assert text_of_pickle(b"Vhello\np0\n.") == "hello" and text_of_pickle(b"\x80\x02X\x02\x00\x00\x00hiq\x00.") == "hi"
    assert unpacked(squeezed(b'[{"input": ""}]'), "x") == '[{"input": ""}]', "without a pickle around it"
    with pytest.raises(DataError, match="more than 65,536 bytes"):
        unpacked(squeezed(b"[" + b" " * 70_000), "x", 1 << 16)
    with pytest.raises(DataError, match="cut off"):
        unpacked(base64.b64encode(zlib.compress(b"[" * 9999)[:20]).decode(), "x")
    with pytest.raises(DataError, match="neither JSON nor"):
        unpacked("not base64!", "x")


def test_ifevals_instructions_travel_with_the_row() -> None:
    source = benchmark("ifeval.jsonl")
    rows = [source.row(n) for n in range(3)]
    assert rows[1].metadata["instructions"][0] == {
        "id": "length_constraints:number_words",
        "with": {"num_words": 5, "relation": "at least"},
    }
    good = ["It runs to the sea.", "<<Lakes>> They lie still and deep.", "* the Baltic\n* the Black Sea"]
    bad = ["It runs, and runs.", "They lie still and deep there.", "* the Baltic"]
    for row, right, wrong in zip(rows, good, bad, strict=True):
        assert (value(Instructions(), row, right), value(Instructions(), row, wrong)) == (1.0, 0.0)


ODD: list[tuple[str, dict[str, Any], str]] = [
    ("competition:Aime", {"problem": "?", "answer": "1/2"}, "whole number from 0 to 999"),
    ("competition:Aime", {"problem": "?", "answer": "1000"}, "whole number"),
    ("competition:Aime", {"problem": "?", "answer": "9" * 5000}, "whole number"),
    ("competition:Aime", {"problem": "?", "answer": {"a": 1}}, "'answer' is a dict"),
    ("instructions:IfEval", {"prompt": "?", "instruction_id_list": 5}, "must be a list of names"),
    ("instructions:IfEval", {"prompt": "?", "instruction_id_list": ["a"], "kwargs": 5}, "a table for each of the 1"),
    ("livecodebench:LiveCodeBench", {"question_content": "?", "private_test_cases": [{"input": "1", "output": "1", "testtype": []}]}, "tests of type"),
    ("livecodebench:LiveCodeBench", {"question_content": "?", "private_test_cases": 5}, "is a int, not a list"),
    ("competition:Aime", {"problem": "?", "answer": "5", "year": "soon"}, "a date must be"),
    ("competition:Aime", {"problem": "?"}, "row 0 has no column 'answer'"),
    ("competition:Aime", {"problem": " ", "answer": "5"}, "row 0 asks nothing"),
    ("competition:Math500", {"problem": ["?"], "answer": "5"}, "'problem' is a list, not text"),
    ("competition:Math500", {"promblem": "?", "answer": "5"}, "it has promblem, answer"),
    ("multiple_choice:Gpqa", {"Question": "?", "Correct Answer": "a"}, "no column 'Incorrect Answer 1'"),
    ("multiple_choice:Gpqa", {"Question": "?", "Correct Answer": "a", **{f"Incorrect Answer {n}": "a" for n in (1, 2, 3)}}, "an option twice"),
    ("multiple_choice:Mmlu", {"question": "?", "choices": "abcd", "answer": 1}, "must be a list of 2 to 26"),
    ("multiple_choice:Mmlu", {"question": "?", "choices": ["a", "b"], "answer": 2}, "one of 2 options, as 0 to 1"),
    ("multiple_choice:Mmlu", {"question": "?", "choices": ["a", "b"], "answer": "AB"}, "one of 2 options"),
    ("multiple_choice:Mmlu", {"question": "?", "choices": ["a", "b"], "answer": -1}, "one of 2 options"),
    ("livecodebench:LiveCodeBench", {"question_content": "?"}, "has no tests"),
    ("livecodebench:LiveCodeBench", {"question_content": "?", "private_test_cases": "[3]"}, "a test has input and output"),
    ("livecodebench:LiveCodeBench", {"question_content": "?", "private_test_cases": "{}"}, "neither JSON nor base64"),
    ("livecodebench:LiveCodeBench", {"question_content": "?", "private_test_cases": [{"input": "1", "output": "1", "testtype": "functional"}]}, "gives no func_name"),
    ("livecodebench:LiveCodeBench", {"question_content": "?", "private_test_cases": [{"input": "1", "output": "1", "testtype": "x"}]}, "tests of type x"),
    ("livecodebench:LiveCodeBench", {"question_content": "?", "contest_date": "May", "private_test_cases": [{"input": "1", "output": "1"}]}, "'contest_date' is 'May'"),
    ("instructions:IfEval", {"prompt": "?", "instruction_id_list": "a", "kwargs": []}, "must be a list of names"),
    ("instructions:IfEval", {"prompt": "?", "instruction_id_list": ["a"], "kwargs": []}, "a table for each of the 1"),
    ("facts:SimpleQa", {"problem": "?", "metadata": "__import__('os')"}, "no column 'answer'"),
]  # fmt: skip


@pytest.mark.parametrize(("use", "row", "told"), ODD, ids=[f"{o[0]}-{n}" for n, o in enumerate(ODD)])
def test_odd_rows_are_named(use: str, row: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        benchmark(written(tmp_path, **row), use).row(0)


def test_a_class_that_reads_no_table_and_options_that_it_does_not_have() -> None:
    with pytest.raises(RunFileError, match="reads no table"):
        open_prompts(
            "asked",
            SourceTable(use="learner.data.sums:SignedSums", path="aime.jsonl"),
            RunFile({}, FIXTURES, FIXTURES / "run.toml"),
        )
    with pytest.raises(RunFileError, match=r"unknown option 'sed'.*did you mean 'seed'"):
        benchmark("gpqa.csv", sed=1)
    with pytest.raises(RunFileError, match=r"must hold \{question\}"):
        benchmark("gpqa.csv", template="?")
    with pytest.raises(RunFileError, match="gives prompts, not documents"):
        open_documents(
            "asked",
            SourceTable(use="learner.data.benchmarks.competition:Aime", path="aime.jsonl"),
            RunFile({}, FIXTURES, FIXTURES / "run.toml"),
        )


def test_a_broken_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2,3\n")
    with pytest.raises(DataError, match="row 0 has more cells"):
        benchmark(tmp_path / "a.csv", "facts:SimpleQa")
    (tmp_path / "b.csv").write_bytes(b"a,b\n\xff\xfe,2\n")
    with pytest.raises(DataError, match="is no CSV"):
        benchmark(tmp_path / "b.csv", "facts:SimpleQa")


def test_simpleqas_rows_carry_the_reference_for_a_judge() -> None:
    source = benchmark("simpleqa.csv", system="Answer in few words.")
    rows = [source.row(n) for n in range(3)]
    assert [(r.answer, r.kind) for r in rows] == [
        ("The Atlantic Ocean", "Geography"),
        ("Four", "Art"),
        ("Mercury", "facts"),
    ]
    assert rows[0].messages[0].role == "system" and rows[0].metadata == {"answer_type": "Place"}
