"""What docs/extending.md shows works as it stands there: every block is written beside a run file and run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ring import ring
from ringtools import small_copy

from broker.errors import RunFileError
from broker.messages import Artefact, Prompt
from broker.runfile import RunFile
from headrace.running.runfile import check

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "extending.md").read_text()
STAGE = '[[stage]]\nkind = "evaluate"\nname = "after"'


def blocks(heading: str) -> tuple[dict[str, str], str]:
    """The files of a section, by name, and its tables."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    files = dict(re.findall(r"```python file=(\S+)\n(.*?)```", section, re.DOTALL))
    return files, "\n".join(re.findall(r"```toml\n(.*?)```", section, re.DOTALL))


def run_file(directory: Path, *headings: str, **changes: str) -> Path:
    """The small ring's run file with these sections plugged in; ``changes`` replace texts of it."""
    file = small_copy(directory)
    text = file.read_text()
    for heading in headings:
        files, tables = blocks(heading)
        for name, source in files.items():
            (directory / name).write_text(source)
        text += "\n" + tables
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    return file


def test_a_data_source_and_a_stage_kind(tmp_path: Path) -> None:
    file = run_file(tmp_path, "A data source", "A stage kind")
    text = file.read_text()
    first, rest = text.index('[[stage]]\nkind = "rl"'), text.index("[data.letters]")
    file.write_text(text[:first] + text[rest:])  # without the small ring's own reinforcement
    home = tmp_path / "run"
    with ring(home, "stage.0.steps=1", file=file) as made:
        assert made.run()
        said = json.loads((home / "survey.json").read_text())
        assert set(said) == {f"letters-{n}@survey" for n in range(3)}
        (artefact,) = made.records("steps", Artefact)
        assert artefact.name == "survey" and len(artefact.group_ids) == 3
        prompts = made.records("prompts", Prompt)
        assert [p.messages[0].content for p in prompts][:1] == ["How many letters has b?"]
        assert made.verify().problems == []


@pytest.mark.parametrize(
    ("heading", "right", "wrong", "says"),
    [
        ("A data source", "longest = 4", "longst = 4", r"\[data.letters\] unknown option 'longst' .* did you mean 'longest'"),
        ("A data source", "counting.py:Counting", "counting.py:Countin", "did you mean 'Counting'"),
        ("A data source", "counting.py:Counting", "countin.py:Counting", "there is no countin.py beside the run file"),
    ],
)  # fmt: skip
def test_what_is_misspelt_is_refused_before_anything_starts(
    tmp_path: Path, heading: str, right: str, wrong: str, says: str
) -> None:
    file = run_file(tmp_path, heading, **{right: wrong})
    with pytest.raises(RunFileError, match=says):
        check(RunFile.read(file))


def test_a_stages_unknown_key_is_refused(tmp_path: Path) -> None:
    file = run_file(tmp_path, "A data source", "A stage kind", **{"questions = 3": "question = 3"})
    with pytest.raises(RunFileError, match="unknown key 'question'; did you mean 'questions'"):
        check(RunFile.read(file))


def test_the_page_names_every_seam_that_a_section_shows() -> None:
    for heading in re.findall(r"^## (A .*)$", PAGE, re.MULTILINE):
        files, tables = blocks(heading)
        assert files and tables, heading
