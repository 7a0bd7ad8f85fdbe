"""Which rows of a source are used, and what of them stands in a benchmark."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from ringtools import SMALL

from broker.errors import DataError, RunFileError
from broker.messages import ChatMessage
from broker.run import Run
from broker.runfile import RunFile
from headrace.__main__ import main
from learner.chosen import REPORT, Clean
from learner.config import LearnerConfig
from learner.data.contamination import Benchmarked, asked_rows, looked_through
from learner.data.registry import open_documents, open_prompts
from learner.data.selection import distinct, is_fresh
from learner.data.source import STALE_ROW, Document, PromptRow, Span
from learner.planning.feed import Schedule, fingerprint
from learner.tables import SourceTable

LONG = "A farmer has seven fields and in each of them stand nine apple trees that bear four baskets"


def rows_in(directory: Path, *rows: dict[str, Any], name: str = "rows") -> str:
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{name}.jsonl"


def opened(directory: Path, *rows: dict[str, Any], cutoff: str = "", **select: Any) -> Any:
    table = SourceTable.model_validate({"path": rows_in(directory, *rows), "select": select})
    tables = {"run": {"name": "a", "model": "m", **({"cutoff": cutoff} if cutoff else {})}}
    return open_prompts("math", table, RunFile(tables, directory, directory / "run.toml"))


def asked(source: Any) -> list[str]:
    return [source.row(n).messages[-1].content for n in range(source.size)]


def prompt(text: str, **more: Any) -> PromptRow:
    return PromptRow((ChatMessage("user", text),), **more)


def test_each_question_once_and_the_first_row_of_it_stays(tmp_path: Path) -> None:
    table = [
        {"prompt": p, "answer": n} for n, p in enumerate(("1+1?", "What is  two?", "what is TWO?", "1+1?", "1-1?"))
    ]
    source = opened(tmp_path, *table, dedupe=True)
    assert asked(source) == ["1+1?", "What is  two?", "1-1?"] and source.row(2).answer == "4"
    assert asked(opened(tmp_path, *table)) == [row["prompt"] for row in table]


def test_rows_that_cannot_be_read_stay_and_are_named_when_they_are_asked(tmp_path: Path) -> None:
    source = opened(tmp_path, {"prompt": "a"}, {"prompt": 3}, {"prompt": "a"}, {"prompt": 3}, dedupe=True)
    assert source.size == 3
    with pytest.raises(DataError, match="row 1 column 'prompt'"):
        source.row(1)


def test_rows_that_a_source_of_others_fails_on_stay_too_and_are_no_questions_of_a_benchmark() -> None:
    class Failing:
        size = 3

        def row(self, number: int) -> PromptRow:
            return prompt("a") if number != 1 else prompt(str({}["absent"]))

    assert distinct(Failing(), range(3)) == [0, 1]
    assert [number for number, _ in asked_rows(Failing(), 3)] == [0, 2]


def test_a_cap_takes_the_same_rows_in_every_run(tmp_path: Path) -> None:
    table = [{"prompt": f"q {n}"} for n in range(50)]
    first = asked(opened(tmp_path, *table, cap=8))
    assert first == asked(opened(tmp_path, *table, cap=8)) and len(set(first)) == 8
    assert (
        first == sorted(first, key=lambda text: int(text.split()[1])) and first != asked(opened(tmp_path, *table))[:8]
    )
    assert len(asked(opened(tmp_path, *table, cap=80))) == 50


DATED = [
    {"prompt": "old", "metadata": {"date": "2024-06-30T23:59:59"}},
    {"prompt": "new", "date": "2024-07-01"},
    {"prompt": "when?"},
    {"prompt": "odd", "metadata": {"date": "soon"}},
]


def test_rows_from_before_the_cut_off_are_left_out_or_marked(tmp_path: Path) -> None:
    assert asked(opened(tmp_path, *DATED, cutoff="2024-07-01", fresh="only")) == ["new"]
    marked = opened(tmp_path, *DATED, cutoff="2024-07-01", fresh="mark")
    assert [marked.row(n).metadata.get(STALE_ROW) for n in range(4)] == [True, None, True, True]
    assert not is_fresh(prompt("?"), datetime.date(2024, 1, 1))
    with pytest.raises(RunFileError, match=r"fresh = 'only' needs the model's cut-off: .run. cutoff"):
        opened(tmp_path, *DATED, fresh="only")
    with pytest.raises(DataError, match="none of its 4 rows has a date of 2030-01-01 or later"):
        opened(tmp_path, *DATED, cutoff="2030-01-01", fresh="only")
    with pytest.raises(RunFileError, match=r"cutoff = 'July': .*YYYY-MM-DD"):
        opened(tmp_path, *DATED, cutoff="July", fresh="only")


def test_documents_are_selected_too(tmp_path: Path) -> None:
    said = [{"prompt": p, "response": "yes"} for p in ("a?", "A?", "b?", f"Is it so: {LONG}?")]
    table = SourceTable.model_validate({"path": rows_in(tmp_path, *said), "select": {"dedupe": True, "cap": 3}})
    file = RunFile({"run": {"name": "a", "model": "m"}}, tmp_path, tmp_path / "run.toml")
    source = open_documents("math", table, file)
    assert [source.document(n, 1.0).messages[0].content for n in range(source.size or 0)] == [
        "a?",
        "b?",
        said[3]["prompt"],
    ]
    assert not hasattr(source, "row")
    rows_in(tmp_path, {"prompt": f"{LONG}, is it?"}, name="exam")
    given = [
        f'data.heldout={{path="{tmp_path / "exam.jsonl"}"}}',
        f'data.corpus={{path="{tmp_path / "rows.jsonl"}", select={{dedupe=true, decontaminate=true}}}}',
    ]
    run = Run.open(SMALL, given, tmp_path / "run")
    config = LearnerConfig(run.file)
    clean = Clean(run, config).documents("corpus", config.data["corpus"])
    assert [clean.document(n, 1.0).messages[0].content for n in range(clean.size or 0)] == ["a?", "b?"]


def test_what_has_no_end_or_no_date_cannot_be_selected_from(tmp_path: Path) -> None:
    file = RunFile({"run": {"name": "a", "model": "m", "cutoff": "2024-07-01"}}, tmp_path, tmp_path / "run.toml")
    for select in ({"dedupe": True}, {"cap": 3}, {"fresh": "only"}):
        with pytest.raises(RunFileError, match="the source has no end"):
            open_prompts(
                "sums", SourceTable.model_validate({"use": "learner.data.sums:SignedSums", "select": select}), file
            )
    with pytest.raises(RunFileError, match="documents have no date"):
        open_documents(
            "d", SourceTable.model_validate({"use": "learner.data.sums:SumsCorpus", "select": {"fresh": "only"}}), file
        )
    marked = open_prompts(
        "sums", SourceTable.model_validate({"use": "learner.data.sums:SignedSums", "select": {"fresh": "mark"}}), file
    )
    assert marked.size is None and marked.row(3).metadata[STALE_ROW] is True


def test_another_selection_of_as_many_rows_is_another_source(tmp_path: Path) -> None:
    table = [{"prompt": f"q {n % 40}"} for n in range(50)]
    source = opened(tmp_path, *table, cap=8)
    assert (
        fingerprint(source)
        == fingerprint(opened(tmp_path, *table, cap=8))
        != fingerprint(opened(tmp_path, *table[:49], cap=8))
    )
    schedule = Schedule("math", source, 0)
    again = Schedule("math", opened(tmp_path, *table, dedupe=True), 0, eras=schedule.eras, begins=20)
    assert [e.start for e in again.eras] == [0, 20] and again.eras[1].first_issue == 3


# -- contamination -----------------------------------------------------------------------------------------------------


def test_thirteen_words_in_a_row_or_a_whole_short_question() -> None:
    against = Benchmarked({"exam": [(0, prompt(f"{LONG}. How many baskets?")), (1, prompt("What is 3+4-5?"))]})
    hit = against.hit(7, prompt(f"Tell me: {LONG.upper()}!"))
    assert (
        hit is not None
        and (hit.row, hit.benchmark, hit.of_row) == (7, "exam", 0)
        and hit.shared.startswith("a farmer has seven")
    )
    assert against.hit(0, prompt(" ".join(LONG.split()[:12]))) is None, "twelve words are not enough"
    assert against.hit(0, prompt("what is 3 + 4 - 5 ?")) is not None
    assert against.hit(0, prompt("What is 3-4+5?")) is None, "signs count in what is short"
    assert against.hit(0, prompt("First: What is 3+4-5?")) is None
    spoken = Document(messages=(ChatMessage("user", "Hello"), ChatMessage("assistant", f"It goes: {LONG}.")))
    assert against.hit(0, spoken) is not None, "an answer may give it away too"
    assert against.hit(0, Document(spans=(Span("What is 3+4-5?", False), Span("2", True)))) is not None
    assert Benchmarked({"exam": [(0, prompt(LONG))]}, ngram=30).hit(0, prompt(LONG)) is not None


def test_the_wording_that_a_benchmarks_questions_share_is_no_contamination() -> None:
    order = "Write a Python program that reads from standard input and prints to standard output in one block of code"
    benchmark = [(n, prompt(f"Task {n} is to add {n} to {n + 1}. {order}")) for n in range(10)]
    against = Benchmarked({"code": benchmark})
    assert against.hit(0, prompt(f"Sort these names. {order}")) is None
    assert against.hit(0, benchmark[4][1]) is not None, "by the words between"
    twice = [(0, prompt(LONG)), (1, prompt(LONG)), *((n, prompt(f"{n} apples?")) for n in range(2, 12))]
    assert Benchmarked({"exam": twice}).hit(0, prompt(LONG)) is not None, (
        "one question that stands there twice is no wording"
    )


def test_hits_are_counted_and_kept_up_to_a_bound() -> None:
    against = Benchmarked({"exam": [(0, prompt("Why?"))], "none": []})
    rows = [(n, prompt("why?") if n % 2 else None if n == 4 else prompt("How?")) for n in range(2400)]
    found = looked_through("train", iter(rows), against)
    wire = found.to_json()
    assert (found.rows, wire["contaminated"], len(wire["hits"]), wire["by_benchmark"]) == (
        2400,
        1200,
        1000,
        {"exam": 1200},
    )
    assert looked_through("train", iter(rows), Benchmarked({})).hits == []


def contaminated(directory: Path, select: str = "{}") -> tuple[Path, list[str]]:
    """The small ring's run file, and settings by which it trains on rows of which some are held out."""
    rows_in(directory, *({"prompt": f"What is {n}?", "answer": n} for n in range(6)), name="train")
    rows_in(directory, *({"prompt": f"what  is {n}?", "answer": n} for n in (4, 5, 9)), name="exam")
    train, exam = directory / "train.jsonl", directory / "exam.jsonl"
    return SMALL, [f'data.prompts={{path="{train}", select={select}}}', f'data.heldout={{path="{exam}"}}']


def clean_rows(run: Run) -> Any:
    config = LearnerConfig(run.file)
    return Clean(run, config).prompts("prompts", config.data["prompts"])


def test_contaminated_rows_are_left_out_counted_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, given = contaminated(tmp_path, "{decontaminate=true}")
    run = Run.open(file, given, tmp_path / "run")
    with caplog.at_level("INFO"):
        source = clean_rows(run)
    assert asked(source) == [f"What is {n}?" for n in range(4)]
    assert "2 of 6 rows stand in a benchmark and are left out: {'heldout': 2}" in caplog.text
    report = json.loads((run.directory / REPORT).read_text())["prompts"]
    assert [(hit["row"], hit["benchmark"], hit["of_row"]) for hit in report["hits"]] == [
        (4, "heldout", 0),
        (5, "heldout", 1),
    ]
    (run.directory / REPORT).write_text("[no JSON")
    assert clean_rows(run).size == 4 and json.loads((run.directory / REPORT).read_text())["prompts"] == report
    plain = Run.open(*contaminated(tmp_path), tmp_path / "plain")
    assert clean_rows(plain).size == 6 and not (plain.directory / REPORT).exists()


def test_a_source_that_is_all_contaminated_or_has_no_end_is_refused(tmp_path: Path) -> None:
    file, given = contaminated(tmp_path, "{decontaminate=true}")
    rows_in(tmp_path, {"prompt": "what is 4?"}, name="train")
    with pytest.raises(DataError, match="each of its 1 rows stands in a benchmark"):
        clean_rows(Run.open(file, given, tmp_path / "run"))
    endless = Run.open(SMALL, ["data.prompts.select={decontaminate=true}"], tmp_path / "endless")
    with pytest.raises(RunFileError, match="the source has no end"):
        clean_rows(endless)


@pytest.mark.long
def test_the_command_lists_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, given = contaminated(tmp_path)
    command = ["contamination", str(file), *(part for setting in given for part in ("--set", setting))]
    assert main(command) == 1
    told = capsys.readouterr().out
    assert "[data.prompts]: 2 of 6 rows share 13 words or a whole question: 2 with [data.heldout]" in told
    assert "row 4 and [data.heldout] row 0: What is 4?" in told
    assert main([*command, "--json"]) == 1
    assert {one["source"]: one["contaminated"] for one in json.loads(capsys.readouterr().out)}["prompts"] == 2
    assert main([*command, "--ngram", "1"]) == 2
