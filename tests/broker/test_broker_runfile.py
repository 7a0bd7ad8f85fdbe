"""Run files: overrides, tables, relative paths, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.errors import RunFileError
from broker.run import Run
from broker.runfile import BrokerTable, RunFile, RunTable, apply_override, parse
from broker.spelling import nearest

RUN = '[run]\nname = "x"\nmodel = "m"\n[[stage]]\nkind = "rl"\nsteps = 1\n[[stage]]\nkind = "rl"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.toml").write_text(RUN)
    return tmp_path / "a.toml"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("run.seed=7", ("run", "seed"), 7),
        ("run.seed = 7", ("run", "seed"), 7),
        ("run.model=Qwen/Qwen3-0.6B", ("run", "model"), "Qwen/Qwen3-0.6B"),
        ("run.model='7'", ("run", "model"), "7"),
        ("learner.optimizer.lr=1e-6", ("learner", "optimizer", "lr"), 1e-6),
        ("run.rewards={a=1.0}", ("run", "rewards"), {"a": 1.0}),
        ("actors.flag=true", ("actors", "flag"), True),
        ("stage.1.steps=5", ("stage", 1, "steps"), 5),
        ("learner.sampling.stop=['=', '.']", ("learner", "sampling", "stop"), ["=", "."]),
        ("broker.url=sqlite:///a=b", ("broker", "url"), "sqlite:///a=b"),
    ],
)
def test_overrides(path: Path, override: str, key: tuple[Any, ...], value: Any) -> None:
    here: Any = RunFile.read(path, [override]).tables
    for part in key:
        here = here[part]
    assert here == value and type(here) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=7", "use table.key=value"),
        ("run.seed", "use table.key=value"),
        ("run..seed=1", "use table.key=value"),
        ("runs.seed=1", r"unknown table \[runs\]; did you mean 'run'\?"),
        ("run.name.x=1", "'name' is not a table"),
        ("stage.2.steps=1", "stage '2' is not one of 0..1"),
        ("stage.first.steps=1", "stage 'first' is not one of"),
        ("stage.1=5", "name a key of the stage"),
    ],
)
def test_malformed_overrides(path: Path, override: str, message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        RunFile.read(path, [override])


def test_a_later_override_holds() -> None:
    tables: dict[str, Any] = {}
    for override in ("run.seed=1", "run.seed=2"):
        apply_override(tables, override)
    assert tables == {"run": {"seed": 2}}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"name": "x"}, r"\[run\] model is missing"),
        ({"name": "x", "model": "m", "seeds": 1}, r"\[run\] unknown key 'seeds'; did you mean 'seed'\?"),
        ({"name": "x", "model": "m", "zzz": 1}, r"unknown key 'zzz'; known: name, model, seed, rewards"),
        ({"name": "x", "model": "m", "seed": "one"}, r"\[run\] seed = 'one': input should be a valid integer"),
        ({"name": "a/b", "model": "m"}, r"\[run\] name = 'a/b'"),
        ({"name": "x", "model": "m", "rewards": {"a": "much"}}, r"\[run\] rewards.a = 'much'"),
        ("x", r"\[run\] must be a table, not 'x'"),
    ],
)
def test_a_mistake_is_one_line_with_table_key_and_value(raw: Any, message: str) -> None:
    with pytest.raises(RunFileError, match=message) as caught:
        parse(raw, RunTable, "[run]")
    assert "\n" not in str(caught.value)


def test_an_absent_table_has_its_defaults(path: Path) -> None:
    assert RunFile.read(path).table("broker", BrokerTable) == BrokerTable()


def test_paths_start_from_the_run_file_also_from_its_copy(path: Path, tmp_path: Path) -> None:
    assert RunFile.read(path).resolve("data/a.jsonl") == tmp_path / "data" / "a.jsonl"
    assert RunFile.read(path).resolve("/data") == Path("/data")
    copy = tmp_path / "run" / "run.toml"
    copy.parent.mkdir()
    copy.write_text(RUN)
    copy.with_suffix(".base").write_text(str(tmp_path))
    assert RunFile.read(copy).resolve("m") == tmp_path / "m"


def test_a_run_has_its_directory_and_its_log(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Run.open(path).directory == tmp_path / "runs" / "x"
    run = Run.open(path, [], tmp_path / "here")
    assert run.url == f"sqlite://{tmp_path}/here/log" and run.topics.steps == "x.steps"
    log = run.open_log()
    assert len(log.topics()) == 6
    log.close()
    with pytest.raises(RunFileError, match=r"\[broker\] url = 'kafka//h'"):
        Run.open(path, ["broker.url=kafka//h"], tmp_path)


def test_the_hint_is_the_nearest_word_or_all_of_them() -> None:
    assert nearest("lerner", ["learner", "actors"]) == "; did you mean 'learner'?"
    assert nearest("zzz", ["learner", "actors"]) == "; known: learner, actors" and nearest("x", []) == ""
