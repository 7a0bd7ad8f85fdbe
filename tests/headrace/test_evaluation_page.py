"""docs/evaluation.md says what is so: its tables are a run file that is checked, its classes are there and judged by whom it says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from broker import plugins
from broker.runfile import RunFile
from headrace.running.runfile import check
from learner.data.registry import open_prompts
from learner.data.selection import CurriculumTable, SelectTable

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text()
FIXTURES = ROOT / "tests" / "fixtures" / "benchmarks"


def blocks() -> list[str]:
    return re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


def test_the_tables_are_a_run_file(tmp_path: Path) -> None:
    for file in FIXTURES.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "train.jsonl").write_text('{"prompt": "What is 5-2?", "answer": 3}\n')
    asks, judges, rows = blocks()
    named = f'name = "page"\nmodel = "{ROOT / "recipes" / "tiny_model"}"\nrewards = {{ accuracy = 1.0 }}\n'
    rows = rows.replace('[data.math]\npath = "train.jsonl"\n', "[data.chosen]\n" + 'path = "train.jsonl"\n')
    (tmp_path / "run.toml").write_text("\n".join([asks.replace("[run]\n", f"[run]\n{named}"), judges, rows]))
    whole = check(RunFile.read(tmp_path / "run.toml"))
    assert whole.run.cutoff == "2024-07-01" and list(whole.learner.benchmarks()) == ["aime", "gpqa"]
    select = whole.learner.data["chosen"].select
    assert (select.dedupe, select.decontaminate, select.ngram, select.cap) == (True, True, 13, 50_000)
    contests = open_prompts("contests", whole.learner.data["contests"], whole.file)
    assert [contests.row(n).metadata["id"] for n in range(contests.size or 0)] == ["own_b", "own_c"], "two are newer"
    assert open_prompts("gpqa", whole.learner.data["gpqa"], whole.file).size == 4


def test_the_classes_are_judged_by_whom_the_page_says() -> None:
    rows = re.findall(r"^\| `(\w+:\w+)` \|.*\| `([\w.]+:\w+)` \|$", PAGE, re.MULTILINE)
    assert len(rows) == 7
    for use, judge in rows:
        kind = plugins.load(f"learner.data.benchmarks.{use}", ROOT, "page")
        assert kind.judged_by == (judge,) and callable(plugins.load(judge, ROOT, "page"))


def test_the_page_names_every_key() -> None:
    for key in [*SelectTable.model_fields, *CurriculumTable.model_fields]:
        assert f"`{key}`" in PAGE or f"{key} =" in PAGE, key
