"""A log engine is plugged in by one line of the run file; the page that says how shows the code that is tested."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from broker.errors import RunFileError
from broker.run import Run

ROOT = Path(__file__).resolve().parents[2]
ENGINE = Path(__file__).resolve().parent / "plugged" / "folder_log.py"
PAGE = ROOT / "docs" / "extending-log.md"


def run_file(directory: Path, broker: str) -> Path:
    path = directory / "mine.toml"
    path.write_text(f'[run]\nname = "mine"\nmodel = "m"\n[broker]\n{broker}\n')
    return path


def table_of_the_page(name: str) -> str:
    (table,) = [t for t in re.findall(r"```toml\n\[broker\]\n(.*?)```", PAGE.read_text(), re.S) if name in t]
    return table


def test_a_run_keeps_its_records_in_an_engine_from_a_file_beside_the_run_file(tmp_path: Path) -> None:
    shutil.copy(ENGINE, tmp_path / "folder_log.py")
    table = table_of_the_page("folder_log").replace("/srv/logs/mine", str(tmp_path / "log"))
    run = Run.open(run_file(tmp_path, table), directory=tmp_path / "run")
    log = run.open_log()
    producer = log.producer()
    producer.send(run.topics.steps, b"1", b"a step")
    (position,) = producer.flush()
    producer.close()
    assert [r.value for r in log.reader(run.topics.steps).get([position])] == [b"a step"]
    assert set(log.topics()) == {spec.name for spec in run.topics.specs()}
    assert (tmp_path / "log" / run.topics.steps).is_dir()
    log.close()


def test_an_engine_that_is_not_there_is_named_with_the_nearest_right_word(tmp_path: Path) -> None:
    shutil.copy(ENGINE, tmp_path / "folder_log.py")
    url = f'url = "folder://{tmp_path}/log"\n'
    with pytest.raises(RunFileError, match=r"unknown scheme 'folder'.*\[broker\] engines"):
        Run.open(run_file(tmp_path, url), directory=tmp_path / "run")
    run = Run.open(
        run_file(tmp_path, url + 'engines = { folder = "folder_log.py:FoldrLog" }'), directory=tmp_path / "r"
    )
    with pytest.raises(RunFileError, match="FoldrLog"):
        run.open_log()
    with pytest.raises(RunFileError, match=r"unknown scheme 'floder'; did you mean 'folder'"):
        Run.open(
            run_file(tmp_path, f'url = "floder://x"\nengines = {{ folder = "{ENGINE.name}:FolderLog" }}'),
            directory=tmp_path / "run",
        )


def test_the_code_on_the_page_is_the_code_that_the_contract_is_tested_with() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    source = ENGINE.read_text()
    assert len(blocks) >= 3
    for block in blocks:
        assert block.strip() in source, f"docs/extending-log.md shows what is not in {ENGINE.name}:\n{block}"
