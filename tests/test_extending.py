"""What docs/extending.md shows works as it stands there: every block is written beside a run file and run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from patience import HANG, until
from ring import ring
from ringtools import small_copy

from broker import plugins
from broker.control.server import ControlServer
from broker.errors import DataError, RunFileError
from broker.messages import Artefact, Prompt
from broker.runfile import RunFile
from broker.weights import layout
from broker.weights.client import WeightClient
from broker.weights.publisher import WeightPublisher
from broker.weights.receiver import DistributedReceiver
from headrace.running.runfile import check
from learner.data.registry import open_prompts

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
        prompts = sorted(made.records("prompts", Prompt), key=lambda p: p.number)
        assert [p.messages[0].content for p in prompts][:1] == ["How many letters has b?"]
        assert made.verify().problems == []


def test_a_benchmark(tmp_path: Path) -> None:
    file = run_file(tmp_path, "A benchmark")
    row = {"Riddle": "What has keys?", "solution": "a piano", "published": "2024-05-01T10:00:00"}
    (tmp_path / "riddles.jsonl").write_text(json.dumps(row) + '\n{"riddle": "Why?"}\n')
    whole = check(RunFile.read(file))
    source = open_prompts("riddles", whole.learner.data["riddles"], whole.file)
    first = source.row(0)
    assert first.messages[0].content.startswith("What has keys?\n") and first.answer == "a piano"
    assert first.metadata == {"date": "2024-05-01"}
    with pytest.raises(DataError, match="row 1 has no column 'solution'"):
        source.row(1)


def test_an_objective(tmp_path: Path) -> None:
    file = run_file(tmp_path, "An objective")
    text = file.read_text()
    first, rest = text.index('[[stage]]\nkind = "rl"'), text.rindex('[[stage]]\nkind = "rl"')
    file.write_text(text[:first] + text[rest:])
    with ring(tmp_path / "run", "stage.0.steps=1", file=file) as made:
        assert made.run()
        results = [r for r in made.results() if r.stage == 1]
        assert len(results) == 2 and all("clip_fraction_high" in r.metrics for r in results)
        assert made.verify().problems == []


@pytest.mark.long
def test_a_weight_road(tmp_path: Path, tiny_model: Path) -> None:
    """A real publisher drives it, and a receiver takes what it brings."""
    files, _ = blocks("A weight road")
    for name, source in files.items():
        (tmp_path / name).write_text(source)
    taken: dict[int, int] = {}
    control = ControlServer()
    road = plugins.build("careful.py:Careful", {}, tmp_path, "[learner] road", control=control)
    template = tmp_path / "template"
    template.mkdir()
    (template / "config.json").write_text("{}")
    publisher = WeightPublisher(control, tmp_path / "weights", template=template, timeout=20.0, road=road)
    client = WeightClient("a", DistributedReceiver(lambda version, tensors: taken.update({version: len(tensors)})))
    try:
        weights = {"w": torch.arange(6.0).reshape(2, 3)}
        publisher.warm(layout.specs_of(weights))
        client.connect(control.endpoint)
        until(control.receivers, "a receiver")
        publisher.publish(1, weights.items())
        assert publisher.wait(HANG)
        until(lambda: taken.get(1) == 1, "the version")
    finally:
        client.close()
        publisher.close()
        control.close()


@pytest.mark.parametrize(
    ("heading", "right", "wrong", "says"),
    [
        ("A data source", "longest = 4", "longst = 4", r"\[data.letters\] unknown option 'longst' .* did you mean 'longest'"),
        ("A data source", "counting.py:Counting", "counting.py:Countin", "did you mean 'Counting'"),
        ("A data source", "counting.py:Counting", "countin.py:Counting", "there is no countin.py beside the run file"),
        ("An objective", "margin = 2.0", "margn = 2.0", "unknown option 'margn' .* did you mean 'margin'"),
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
    for heading in re.findall(r"^## (An? .*)$", PAGE, re.MULTILINE):
        files, tables = blocks(heading)
        assert files and (tables or heading == "An exporter"), heading
