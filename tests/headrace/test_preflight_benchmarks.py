"""What the pre-flight says of benchmarks: what of them is trained on, how old they are, and whether who judges them can."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ringtools import SMALL

from broker.errors import RunFileError
from broker.runfile import RunFile
from headrace.__main__ import main
from headrace.preflight import benchmarks, settings
from headrace.preflight.findings import Finding
from headrace.preflight.subject import Subject
from headrace.running.runfile import check

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "benchmarks"
LONG = "A farmer has seven fields and in each of them stand nine apple trees that bear four baskets"


def found(look: Callable[[Subject], Any], *overrides: str) -> list[Finding]:
    return list(look(Subject(check(RunFile.read(SMALL, overrides)))))


def source(directory: Path, name: str, rows: list[dict[str, Any]], more: str = "") -> str:
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f'data.{name}={{path="{directory / name}.jsonl"{more}}}'


@pytest.mark.long
def test_contaminated_rows_are_counted_with_their_places(tmp_path: Path) -> None:
    exam = source(tmp_path, "heldout", [{"prompt": f"{LONG}. How many?"}, {"prompt": "What is 3+4?"}])
    train = [{"prompt": f"q {n}"} for n in range(8)] + [{"prompt": f"Once: {LONG}!"}, {"prompt": "what is 3 + 4 ?"}]
    (said,) = found(benchmarks.contaminated, exam, source(tmp_path, "prompts", train))
    assert said.level == "warning" and said.where == "[data.prompts]" and "2 of 10 (20%)" in said.what
    assert "[data.heldout] (2), row 8 first: 'a farmer has seven" in said.what and "decontaminate = true" in said.cure
    (said,) = found(benchmarks.contaminated, exam, source(tmp_path, "prompts", train, ", select={decontaminate=true}"))
    assert said.level == "note" and "they are left out" in said.what
    documents = [{"messages": [{"role": "user", "content": "Go"}, {"role": "assistant", "content": f"Well, {LONG}."}]}]
    (said,) = found(benchmarks.contaminated, exam, source(tmp_path, "corpus", documents))
    assert said.where == "[data.corpus]" and "1 of 1" in said.what
    assert not found(benchmarks.contaminated, exam, source(tmp_path, "prompts", train[:8]))
    assert not found(benchmarks.contaminated, source(tmp_path, "heldout", []))


@pytest.mark.long
def test_decontamination_of_what_has_no_end_is_refused() -> None:
    (said,) = found(benchmarks.contaminated, "data.prompts.select={decontaminate=true}")
    assert said.level == "error" and "has no end" in said.what


def test_rows_from_before_the_cut_off_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {n}", "date": f"2024-0{n + 5}-01"} for n in range(4)]
    exam = source(tmp_path, "heldout", rows)
    (said,) = found(benchmarks.dated, exam, "run.cutoff='2024-07-01'")
    assert said.level == "warning" and "2 of 4 (50%)" in said.what and 'fresh = "only"' in said.cure
    (said,) = found(
        benchmarks.dated, source(tmp_path, "heldout", rows, ', select={fresh="mark"}'), "run.cutoff='2024-07-01'"
    )
    assert said.level == "note" and "they are marked" in said.what
    assert not found(
        benchmarks.dated, source(tmp_path, "heldout", rows, ', select={fresh="only"}'), "run.cutoff='2024-07-01'"
    )
    assert not found(benchmarks.dated, exam) and not found(
        benchmarks.dated, source(tmp_path, "heldout", [{"prompt": "q"}]), "run.cutoff='2024-07-01'"
    )


def test_a_judge_that_does_not_read_what_a_benchmark_carries(tmp_path: Path) -> None:
    gpqa = f'data.heldout={{use="learner.data.benchmarks.multiple_choice:Gpqa", path="{FIXTURES / "gpqa.csv"}", select={{dedupe=true}}}}'
    given = [gpqa, "rewarders.numbers.use=rewarders.math:MathAccuracy", "rewarders.choice.use=rewarders.choice:Choice"]
    (said,) = found(benchmarks.judged_by, *given, "stage.2.rewarder=numbers", "stage.1.eval_every=0")
    assert (
        said.level == "warning"
        and "'numbers' (rewarders.math:MathAccuracy)" in said.what
        and "rewarders.choice:Choice" in said.cure
    )
    assert not found(benchmarks.judged_by, *given, "stage.2.rewarder=choice", "stage.1.eval_every=0")
    assert not found(benchmarks.judged_by, *given), "a rewarder of one's own may know them"


def test_a_benchmarks_judge_needs_a_table_and_no_place_in_the_mix() -> None:
    given = ["rewarders.choice.use=rewarders.choice:Choice", "stage.2.rewarder=choice"]
    assert not [f for f in found(settings.rewards, *given) if "no mix names it" in f.what]
    with pytest.raises(
        RunFileError, match=r"rewarder = 'chice', but there is no \[rewarders.chice\]; did you mean 'choice'"
    ):
        check(RunFile.read(SMALL, [given[0], "stage.2.rewarder=chice"]))
    with pytest.raises(RunFileError, match=r"select.curriculum.rewarder = 'vowls'.*did you mean 'vowels'"):
        check(RunFile.read(SMALL, ["data.prompts.select={curriculum={rewarder='vowls'}}"]))
    with pytest.raises(RunFileError, match=r"\[data.prompts\] unknown key 'select.dedup'; did you mean 'dedupe'"):
        check(RunFile.read(SMALL, ["data.prompts.select={dedup=true}"]))
    with pytest.raises(RunFileError, match="cutoff"):
        check(RunFile.read(SMALL, ["run.cutoff=July"]))


@pytest.mark.long
def test_the_plan_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exam = source(tmp_path, "heldout", [{"prompt": "What is 3+4?"}])
    train = source(tmp_path, "prompts", [{"prompt": "what is 3 + 4 ?"}, {"prompt": "q"}])
    main(["plan", str(SMALL), "--set", exam, "--set", train])
    assert "1 of 2 (50%) of its rows share 13 words in a row" in capsys.readouterr().out
