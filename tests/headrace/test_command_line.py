"""The command line: exit statuses, one line for a mistake, quick to start, and what it keeps in a run's directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from handmade import Handmade
from ringtools import SMALL, headrace

from broker.errors import RunFileError
from broker.run import Run
from broker.runfile import RunFile
from headrace.__main__ import _record, main
from headrace.commands.run import FINISHED_MARK, is_finished
from headrace.running.rundir import changes, find_run, record, reopen
from headrace.running.runfile import check

ROOT = Path(__file__).resolve().parents[2]


def small(tmp_path: Path, old: str = "", new: str = "") -> Path:
    """The small run file with one thing changed, and its rewarder beside it."""
    text = SMALL.read_text().replace("../../recipes", str(ROOT / "recipes"))
    assert old in text
    (tmp_path / "vowels.py").write_text((SMALL.parent / "vowels.py").read_text())
    (tmp_path / "run_file.toml").write_text(text.replace(old, new))
    return tmp_path / "run_file.toml"


def test_the_front_door_opens_without_torch_rich_or_a_log() -> None:
    code = (
        "import sys; from headrace.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'rich', 'pydantic', 'sqlite3', 'zmq') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]" and "the lineage of one optimizer step" in out


@pytest.mark.parametrize(
    "arguments", [["nonsense"], [], ["run"], ["trace", "runs/x", "three"], ["broker", "look", "x"]]
)
def test_a_wrong_command_ends_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(arguments) == 2
    except SystemExit as end:
        assert end.code == 2
    assert "usage" in "".join(capsys.readouterr())


@pytest.mark.parametrize("command", [["verify"], ["report"], ["broker", "lag"], ["trace"]])
def test_a_directory_that_is_no_run(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, str(tmp_path), *(["1"] if command == ["trace"] else [])]) == 2
    assert "is no run: it has no run.toml" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_log_that_cannot_be_written_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("a file")
    assert main(["run", str(small(tmp_path)), "--dir", str(tmp_path / "taken"), "--plain"]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_the_daemons_take_the_same_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for role in ("learner", "actor", "rewarder"):
        with pytest.raises(SystemExit) as end:
            main([role, "--help"])
        assert end.value.code == 0 and "--set TABLE.KEY=VALUE" in capsys.readouterr().out
    missing = headrace("rewarder", "nowhere.toml", "--rewarder", "x")
    assert missing.returncode == 2 and "'nowhere.toml' does not exist" in missing.stderr


@pytest.mark.long
def test_plan_says_what_would_run_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = small(tmp_path)
    assert main(["plan", str(file), "--dir", str(tmp_path / "run"), "--set", "actors.count=3"]) == 0
    out = capsys.readouterr().out
    assert "3 actors (local, 32 slots each)" in out and "rewarder vowels: vowels.py:Vowels, 1 workers, weight 1" in out
    assert str(tmp_path / "run") in out and not (tmp_path / "run").exists()


MISSING = [
    ("vowels.py:Vowels", "vowel.py:Vowels", r"\[rewarders.vowels\] use = .*no vowel.py beside.*did you mean 'vowels.py'\?"),
    ("vowels.py:Vowels", "vowels.py:Vowel", r"vowels.py has no 'Vowel'; did you mean 'Vowels'\?"),
    ("vowels.py:Vowels", "rewarders.mth:X", r"there is no module 'rewarders.mth'; did you mean 'rewarders.math'\?"),
    ("vowels.py:Vowels", "vowels", r"write it as module:Class"),
    ("learner.data.sums:SignedSums", "learner.data.sums:SignedSum", r"\[data.prompts\].*did you mean 'SignedSums'\?"),
    ('prompts = { use = "learner.data.sums:SignedSums", seed = 1 }', 'prompts = "no.jsonl"', r"\[data.prompts\] path = 'no.jsonl'.*does not exist"),
    ('prompts = { use = "learner.data.sums:SignedSums", seed = 1 }', "prompts = { seed = 1 }", r"\[data.prompts\] needs use = "),
    ("/tiny_model", "/tiny_modle", r"\[run\] model = .*does not exist; did you mean 'tiny_model'\?"),
    ('use = "vowels.py:Vowels"', 'use = "vowels.py:Vowels"\n[rewarders.other]\nworkers = 2', r"\[rewarders.other\] needs either"),
    ("[rewarders.vowels]", "[rewarders.vowel]", r"no \[rewarders.vowels\]; did you mean 'vowel'\?"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), MISSING, ids=[new[:30] for _, new, _ in MISSING])
def test_what_is_not_there_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = small(tmp_path, old, new)
    with pytest.raises(RunFileError, match=message):
        check(RunFile.read(file))


def test_what_only_a_daemon_can_tell_passes(tmp_path: Path) -> None:
    (tmp_path / "clever.py").write_text("if True:\n    class Judge: ...\n")
    check(RunFile.read(small(tmp_path, "vowels.py:Vowels", "clever:Judge")))
    check(RunFile.read(small(tmp_path, 'use = "vowels.py:Vowels"', "external = true")))
    check(RunFile.read(small(tmp_path), ["run.model=Qwen/Qwen3-0.6B"]))


def test_the_directory_keeps_the_run_file_and_says_what_has_changed(tmp_path: Path) -> None:
    file, home = small(tmp_path), tmp_path / "run"
    assert record(Run.open(file, [], home)) == []
    assert record(Run.open(file, ["learner.max_lag=4", "stage.1.steps=9"], home)) == [
        "learner.max_lag: 2 -> 4",
        "stage.1.steps: 30 -> 9",
    ]
    again = reopen(home)
    assert again.file.tables["stage"][1]["steps"] == 9 and again.file.resolve("vowels.py").is_file()
    assert record(again) == [], "the copy starts the run as well as the original"
    assert find_run(home / "run.toml").directory == find_run(home).directory == home
    with pytest.raises(RunFileError, match=r"\[run\] name = 'other', but .* holds run 'small'"):
        record(Run.open(file, ["run.name=other"], home))
    (home / "run.toml").write_text("[run\n")
    with pytest.raises(RunFileError, match="is damaged"):
        record(Run.open(file, [], home))


@pytest.mark.parametrize(("rank", "kept"), [("", True), ("0", True), ("1", False)])
def test_a_learner_by_hand_leaves_its_run_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, kept: bool
) -> None:
    """Also as a pool under torchrun, whose other ranks need not even see the run file."""
    if rank:
        pool = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        for name, value in pool.items():
            monkeypatch.setenv(name, value)
    directory = tmp_path / "run"
    _record([str(small(tmp_path)), "--dir", str(directory)])
    assert (directory / "run.toml").exists() == kept
    assert not kept or reopen(directory).table.name == "small"


def test_a_run_file_leads_to_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = small(tmp_path)
    with pytest.raises(RunFileError, match="is no run"):
        find_run(file)
    assert not (tmp_path / "runs").exists(), "looking makes nothing"
    record(Run.open(file))
    assert find_run(file).directory == tmp_path / "runs" / "small"


def test_changes_are_told_by_key() -> None:
    assert changes({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": [1, 2]}, "d": 3}) == [
        "a.b: 1 -> 2",
        "a.c: [1] -> [1, 2]",
        "d: None -> 3",
    ]
    assert changes({"a": 1}, {}) == ["a: 1 -> None"]


def test_a_finished_run_is_not_started_again(tmp_path: Path) -> None:
    home = tmp_path / "run"
    home.mkdir()
    hand = Handmade(home / "log").whole()
    run = hand.run(home)
    whole = check(RunFile.read(SMALL, ["broker.partitions=2"]))
    (home / FINISHED_MARK).touch()
    assert not is_finished(run, whole), "the last stage is not closed"
    hand.manifest(3, kind="close", stage=1, dropped=(), state=hand.state("p-6@0"))
    assert not is_finished(run, whole), "the run file has a third stage"
    hand.manifest(3, kind="close", stage=2, state=hand.state("p-6@0"))
    assert is_finished(run, whole)
    (home / FINISHED_MARK).unlink()
    assert not is_finished(run, whole), "its last checkpoint may be missing"
    hand.close()


def test_the_doctor_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.doctor import machine as doctor
    from headrace.doctor.command import doctor_command

    monkeypatch.chdir(tmp_path)
    assert all(check().ok for check in (doctor.python, doctor.packages, doctor.log, doctor.ports))
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"
    monkeypatch.setattr(doctor, "DISK_GB", 1e9)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.python, doctor.disk))
    assert not doctor.disk().ok and "free at least" in doctor.disk().fix
    assert doctor_command(None, as_json=False) == doctor_command(None, as_json=True) == 1
