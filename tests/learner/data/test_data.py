"""Data sources: rows by number, always the same; mistakes name file, row and column."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from broker.errors import DataError, RunFileError
from broker.runfile import RunFile
from learner.data.bilingual import BilingualCorpus, OneTongue
from learner.data.documents import DocumentTokenizer
from learner.data.greetings import GreetingReplies
from learner.data.guesses import GuessCorpus
from learner.data.reasoning_gym import ReasoningGymDocuments, ReasoningGymTasks
from learner.data.registry import open_documents, open_prompts
from learner.data.source import Document, PromptRow, Span, row_of
from learner.data.sums import SignedSums, SumsCorpus
from learner.model.load import load_tokenizer
from learner.planning.feed import Schedule
from learner.tables import SourceTable

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "recipes" / "tiny_model"
CARD = """---
configs:
- config_name: main
  data_files: [{split: test, path: main/test.parquet}]
- config_name: socratic
  data_files: [{split: test, path: socratic/test.parquet}]
---
"""
ROWS = [
    {"question": "1+1?", "answer": "2", "kind": "math", "metadata": {"level": 1}},
    {"question": "2+2?", "answer": 4, "kind": "math", "metadata": {"level": 2}},
]


def file_in(directory: Path) -> RunFile:
    return RunFile({}, directory, directory / "run.toml")


def source_of(path: str, directory: Path, **options: Any) -> Any:
    return open_prompts("prompts", SourceTable.model_validate({"path": path, **options}), file_in(directory))


def save(kind: str, directory: Path, rows: list[dict[str, Any]]) -> str:
    """Write ``rows`` as a file or data set of ``kind``; returns its path from ``directory``."""
    if kind == "jsonl":
        (directory / "rows.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
        return "rows.jsonl"
    table = datasets.Dataset.from_list([{**r, "answer": str(r["answer"])} for r in rows])
    if kind == "parquet":
        table.to_parquet(str(directory / "rows.parquet"))
        return "rows.parquet"
    if kind == "directory":
        table.save_to_disk(str(directory / "saved"))
        return "saved"
    datasets.DatasetDict({"train": table.select([1]), "test": table}).save_to_disk(str(directory / "splits"))
    return "splits"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "directory", "splits"])
def test_tables_of_every_kind(tmp_path: Path, kind: str) -> None:
    options = {"split": "test"} if kind == "splits" else {}
    source = source_of(
        save(kind, tmp_path, ROWS),
        tmp_path,
        columns={"prompt": "question"},
        system="Be brief.",
        template="Q: {prompt}",
        **options,
    )
    assert source.size == 2
    row = source.row(1)
    assert [tuple(m) for m in row.messages] == [("system", "Be brief."), ("user", "Q: 2+2?")]
    assert (row.answer, row.kind, row.metadata) == ("4", "math", {"level": 2})


def test_conversations_and_documents(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"prompt": "q", "response": "r"}) + "\n" + json.dumps({"text": "plain"}))  # fmt: skip
    documents = open_documents("documents", SourceTable(path="a.jsonl"), file_in(tmp_path))
    assert [tuple(m) for m in documents.document(0, 1.0).messages] == [("user", "hi"), ("assistant", "ho")]
    assert [tuple(m) for m in documents.document(1, 1.0).messages] == [("user", "q"), ("assistant", "r")]
    assert documents.document(2, 1.0).spans == (Span("plain", True),)


MISTAKES = [
    ("rows.jsonl", {}, "no column 'prompt'; it has question"),
    ("bad.jsonl", {}, "line 1 is no JSON"),
    ("list.jsonl", {}, "must be an object"),
    ("typed.jsonl", {}, "column 'prompt' is a int"),
    ("turns.jsonl", {}, r"must be \{role, content\}"),
]


@pytest.mark.parametrize(("path", "options", "message"), MISTAKES, ids=[p for p, _, _ in MISTAKES])
def test_wrong_rows_are_named(tmp_path: Path, path: str, options: dict[str, Any], message: str) -> None:
    save("jsonl", tmp_path, ROWS)
    (tmp_path / "bad.jsonl").write_text("{]\n")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "typed.jsonl").write_text('{"prompt": 3}\n')
    (tmp_path / "turns.jsonl").write_text('{"messages": ["hi"]}\n')
    with pytest.raises(DataError, match=message):
        source_of(path, tmp_path, **options).row(0)


SHAPES = [
    ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}, [("system", "s"), ("user", "q")]),
    ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}, [("user", "ab")]),
    ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]}, [("user", "q"), ("assistant", "r")]),
    ({"messages": None, "prompt": "q"}, [("user", "q")]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "said"), SHAPES, ids=["list", "parts", "from", "none"])
def test_common_shapes_of_conversations(tmp_path: Path, row: dict[str, Any], said: list[tuple[str, str]]) -> None:
    save("jsonl", tmp_path, [row])
    assert [tuple(m) for m in source_of("rows.jsonl", tmp_path).row(0).messages] == said


def test_an_answer_is_text_a_number_or_all_that_are_right(tmp_path: Path) -> None:
    save("jsonl", tmp_path, [{"prompt": "q", "answer": a} for a in (4, 0.5, ["1/2", 0.5], ["7"], [], None)])
    rows = [source_of("rows.jsonl", tmp_path).row(n) for n in range(6)]
    assert [row.answer for row in rows] == ["4", "0.5", "1/2", "7", None, None]
    assert [row.metadata.get("answers") for row in rows] == [None, None, ["1/2", "0.5"], None, None, None]


ODD = [
    ({"prompt": 3}, "rows.jsonl row 0 column 'prompt' is a int"),
    ({"prompt": []}, "rows.jsonl row 0 column 'prompt' is empty"),
    ({"prompt": ["hi"]}, r"rows.jsonl row 0 column 'prompt': a message must be \{role, content\}"),
    ({"messages": [{"role": "user", "content": None}]}, "column 'messages': a message must be"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "column 'messages': a message must be"),
    ({"prompt": "q", "answer": {"x": 1}}, "rows.jsonl row 0 column 'answer' is a dict"),
    ({"prompt": "q", "answer": [["a"]]}, "rows.jsonl row 0 column 'answer' holds a list"),
    ({"prompt": "q", "kind": 3}, "rows.jsonl row 0 column 'kind' is a int"),
    ({"prompt": "q", "metadata": "m"}, "rows.jsonl row 0 column 'metadata' is a str"),
]


@pytest.mark.parametrize(("row", "told"), ODD, ids=[t[:50] for _, t in ODD])
def test_odd_rows_name_file_row_and_column(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    save("jsonl", tmp_path, [row])
    with pytest.raises(DataError, match=told):
        source_of("rows.jsonl", tmp_path).row(0)


UNWRITABLE = [
    ('{"prompt": "a \\ud800 b"}', "rows.jsonl row 0 cannot be written to the log: .*surrogates not allowed"),
    ('{"prompt": "a", "answer": "\\udc00"}', "rows.jsonl row 0 cannot be written to the log: .*surrogates not allowed"),
    ('{"prompt": "a", "metadata": {"n": 123456789012345678901234567890}}', "row 0 cannot be written to the log: .*out of range"),
    ('{"prompt": "a", "metadata": {"x": ' + "[" * 2000 + "]" * 2000 + "}}", "rows.jsonl (line 1 is nested too deep|row 0 cannot be written)"),
    ('{"prompt": "a", "x": ' + "[" * 200_000 + "]" * 200_000 + "}", "rows.jsonl line 1 is nested too deep"),
    (b'{"prompt": "caf\xe9"}', "rows.jsonl line 1 is no JSON: 'utf-8' codec"),
    ('{"prompt": "a", "ans', "rows.jsonl line 1 is no JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "told"), UNWRITABLE, ids=[t[-40:] for _, t in UNWRITABLE])
def test_what_the_log_cannot_hold_is_an_odd_row_too(tmp_path: Path, line: str | bytes, told: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(DataError, match=told):
        row_of(source_of("rows.jsonl", tmp_path), 0)


def test_a_source_that_fails_in_its_own_way_names_the_row() -> None:
    class Broken:
        size = 1

        def row(self, number: int) -> PromptRow:
            return {}["prompt"]  # type: ignore[return-value]

    with pytest.raises(DataError, match="row 3: KeyError: 'prompt'"):
        row_of(Broken(), 3)


def test_a_number_that_is_none_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": NaN}\n')
    assert source_of("rows.jsonl", tmp_path).row(0).answer is None


def test_wrong_tables_are_named(tmp_path: Path) -> None:
    save("jsonl", tmp_path, ROWS)
    with pytest.raises(
        RunFileError, match=r"\[data.prompts\] unknown option 'colums' of TablePrompts; did you mean 'columns'"
    ):
        source_of("rows.jsonl", tmp_path, colums={})
    with pytest.raises(RunFileError, match="may rename"):
        source_of("rows.jsonl", tmp_path, columns={"promt": "question"})
    with pytest.raises(RunFileError, match="needs use"):
        open_prompts("prompts", SourceTable(), file_in(tmp_path))
    with pytest.raises(RunFileError, match="cannot be loaded"):
        open_prompts("prompts", SourceTable(use="nowhere:Rows"), file_in(tmp_path))
    with pytest.raises(RunFileError, match="not documents"):
        open_documents("documents", SourceTable(use="learner.data.sums:SignedSums"), file_in(tmp_path))
    with pytest.raises(RunFileError, match="min_terms 9"):
        open_prompts(
            "prompts",
            SourceTable.model_validate({"use": "learner.data.sums:SignedSums", "min_terms": 9}),
            file_in(tmp_path),
        )
    for missing in ("rws.jsonl", "data/rows.parquet", "./rows", "/no/such/rows", "a/b/c"):
        with pytest.raises(DataError, match="does not exist; relative paths"):
            source_of(missing, tmp_path)


def test_a_data_set_with_several_configurations(tmp_path: Path) -> None:
    for config, answer in (("main", "1"), ("socratic", "2")):
        (tmp_path / "set" / config).mkdir(parents=True)
        datasets.Dataset.from_list([{"prompt": "q", "answer": answer}]).to_parquet(str(tmp_path / "set" / config / "test.parquet"))  # fmt: skip
    (tmp_path / "set" / "README.md").write_text(CARD)
    assert source_of("set", tmp_path, config="socratic", split="test").row(0).answer == "2"
    assert source_of("set", tmp_path, config="main", split="test").row(0).answer == "1"
    with pytest.raises(DataError, match="cannot be read"):
        source_of("set", tmp_path, config="mian", split="test")
    with pytest.raises(DataError, match="has no split 'train'; it has test"):
        source_of("set", tmp_path, config="main")


def test_what_is_held_out_is_asked_nowhere_else() -> None:
    held = {SignedSums(held_out=True).row(n).messages[0].content for n in range(400)}
    asked = {SignedSums(seed=seed).row(n).messages[0].content for seed in range(3) for n in range(1000)}
    corpus = SumsCorpus()
    for n in range(2000):
        document = corpus.document(n, 1.0)
        texts = [s.text.strip() for s in document.spans] + [m.content for m in document.messages]
        asked.update(text for text in texts if text.startswith("Compute"))
    assert len(held) > 390 and len(asked) > 5000 and not held & asked
    with pytest.raises(DataError, match="no sums of 2 terms mod 4 are held out"):
        SignedSums(min_terms=2, max_terms=2, modulus=4, held_out=True).row(0)


def test_sums_are_right_and_the_same_every_time() -> None:
    train, held = SignedSums(seed=1), SignedSums(seed=1_000_000)
    for number in range(200):
        row = train.row(number)
        assert row == train.row(number)
        expression = row.messages[0].content.removeprefix("Compute ").removesuffix(" mod 10.")
        total, sign, digits = 0, 1, set()
        for c in expression:
            if c in "+-":
                sign = 1 if c == "+" else -1
            else:
                total += sign * int(c)
                digits.add(c)
        assert row.answer == str(total % 10) and len(digits) == row.metadata["terms"]
    assert [train.row(n) for n in range(20)] != [held.row(n) for n in range(20)]


def test_the_corpus_grows_with_its_level_and_tokenizes_as_a_conversation() -> None:
    tokenizer = load_tokenizer(str(TINY))
    corpus, words = SumsCorpus(), DocumentTokenizer(tokenizer, "chain")
    easy = sum(len(words.tokenize(corpus.document(n, 0.0)).tokens) for n in range(40))
    hard = sum(len(words.tokenize(corpus.document(n, 1.0)).tokens) for n in range(40))
    assert hard > 1.3 * easy
    talk = next(d for n in range(40) if (d := corpus.document(n, 1.0)).messages)
    found = words.tokenize(talk)
    turns = [{"role": m.role, "content": m.content} for m in talk.messages]
    assert found.tokens.tolist() == tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    trained = tokenizer.decode(found.tokens[found.trained])
    assert (
        trained == "".join(m.content + "<|im_end|>" for m in talk.messages if m.role == "assistant")
        and not found.tagged.any()
    )
    with pytest.raises(DataError, match="without text"):
        words.tokenize(Document())


@pytest.mark.parametrize("task", ["chain_sum", "letter_counting", "simple_equations", "color_cube_rotation"])
def test_any_task_of_reasoning_gym_by_its_name(task: str) -> None:
    source = ReasoningGymTasks(tasks={task: {}}, seed=5)
    assert source.row(3) == source.row(3) != source.row(4)
    row = source.row(3)
    assert row.kind == task and json.dumps(dict(row.metadata)) and row.metadata["reasoning_gym"]["dataset"] == task
    with pytest.raises(DataError, match="did you mean 'chain_sum'"):
        ReasoningGymTasks(tasks=["chain_sums"])
    with pytest.raises(DataError, match="options of 'chain_sum'"):
        ReasoningGymTasks(tasks={"chain_sum": {"max_termz": 3}})
    documents = ReasoningGymDocuments(tasks=[task], right=1.0)
    assert documents.document(2, 1.0).messages[1].content.endswith(f"<answer>{documents.row(2).answer}</answer>")


def test_streams_of_reasoning_gym_do_not_meet() -> None:
    """reasoning-gym draws entry i from seed + i: neighbouring seeds must not give the same rows one place on."""
    wide = {"chain_sum": {"min_digits": 4, "max_digits": 4}}
    streams = [{ReasoningGymTasks(tasks=wide, seed=s).row(n).messages[0].content for n in range(150)} for s in (1, 2)]
    assert len(streams[0] | streams[1]) == 300
    narrow = {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    held = ReasoningGymTasks(tasks=narrow, split="held_out")
    train = ReasoningGymDocuments(tasks=narrow, split="train", seed=5)
    questions = {held.row(n).messages[0].content for n in range(100)}
    assert len(questions) > 10 and not questions & {train.document(n, 1.0).messages[0].content for n in range(1500)}
    assert held.row(99) == ReasoningGymTasks(tasks=narrow, split="held_out").row(99)
    with pytest.raises(DataError, match="may not set 'size'"):
        ReasoningGymTasks(tasks={"chain_sum": {"size": 10}})
    with pytest.raises(DataError, match="split = 'test' must be"):
        ReasoningGymTasks(tasks=["chain_sum"], split="test")


def test_rows_beyond_a_block_are_asked_too() -> None:
    source = ReasoningGymTasks(tasks=["word_ladder"])  # refuses more than 20,000 entries of one seed
    assert source.row(50_001) == source.row(50_001) != source.row(1)


def test_documents_are_right_as_often_as_they_say() -> None:
    source = ReasoningGymDocuments(tasks={"gcd": {"min_value": 1, "max_value": 9}}, right=0.5)
    right = sum(
        source.document(n, 1.0).messages[1].content.endswith(f"<answer>{source.row(n).answer}</answer>")
        for n in range(400)
    )
    assert 160 <= right <= 240  # the rows are fixed; a wrong answer that is right by chance made it .59


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        (SumsCorpus, {"raw_share": 1.5}, "raw_share = 1.5; it must be a share in [0, 1]"),
        (SumsCorpus, {"broken": -0.1}, "broken = -0.1; it must be a share in [0, 1]"),
        (SumsCorpus, {"max_terms": 1}, "needs 2 <= min_terms 2 <= max_terms 1"),
        (BilingualCorpus, {"greetings": 2.0}, "greetings = 2.0; it must be a share in [0, 1]"),
        (OneTongue, {"skips": float("nan")}, "skips = nan; it must be a share in [0, 1]"),
        (GreetingReplies, {"kind": 3.0}, "kind = 3.0; it must be a share in [0, 1]"),
        (GreetingReplies, {"count": 0}, "count = 0; it must be at least 1"),
        (GuessCorpus, {"sensible": 30.0}, "sensible = 30.0; it must be a share in [0, 1]"),
        (GuessCorpus, {"turns": 0}, "turns = 0; it must be at least 1"),
        (GuessCorpus, {"low": 9}, "needs low 9 < high 9"),
        (ReasoningGymDocuments, {"tasks": ["gcd"], "right": 50.0}, "right = 50.0; it must be a share in [0, 1]"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_drawn(
    source: Callable[..., object], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as error:
        source(**options)
    assert str(error.value).startswith(said)


def test_rows_come_in_a_new_order_in_every_epoch(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"prompt": str(i)}) for i in range(20)))
    schedule = Schedule("rows", source_of("rows.jsonl", tmp_path), seed=4)
    first, second = [schedule.row(n) for n in range(20)], [schedule.row(n) for n in range(20, 40)]
    assert sorted(r for r, _ in first) == sorted(r for r, _ in second) == list(range(20))
    assert {issue for _, issue in first} == {0} and {issue for _, issue in second} == {1}
    assert [r for r, _ in first] != [r for r, _ in second]
    assert Schedule("rows", source_of("rows.jsonl", tmp_path), seed=4).row(33) == schedule.row(33)
