"""A learner that is killed while it removes or replaces a checkpoint leaves none that only looks whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ring import Killed

from broker.errors import CheckpointError
from learner.training import checkpoint
from learner.training.checkpoint import Checkpoints, Progress, read_state
from learner.training.tensorfiles import TENSORS


def save(checkpoints: Checkpoints, version: int, value: float, name: str = "", keep: int = 2) -> Path:
    def save_model(directory: Path) -> None:
        (directory / "model").write_text("weights")

    progress = Progress(version, 0, version, steps_offset=version)
    return checkpoints.save(progress, {"a": torch.tensor([value])}, save_model, keep, name)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path)


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner is killed, each time, when it has removed the tensors of a directory and nothing else of it."""

    remove = shutil.rmtree

    def removed(path: Path, *rest: Any, **options: Any) -> None:
        if (path / TENSORS).exists():
            (path / TENSORS).unlink()
            raise Killed
        remove(path, *rest, **options)

    monkeypatch.setattr(shutil, "rmtree", removed)


def newest_value(checkpoints: Checkpoints) -> float:
    newest = checkpoints.newest()
    assert newest is not None
    return float(read_state(newest[0])["a"])


@pytest.mark.usefixtures("cut_off")
@pytest.mark.parametrize("name", ["", "stage-0-base"])
def test_a_checkpoint_that_is_replaced_is_whole_whenever_the_learner_is_killed(
    checkpoints: Checkpoints, name: str
) -> None:
    save(checkpoints, 1, 1.0, name)
    for value in (2.0, 3.0):
        with pytest.raises(Killed):
            save(checkpoints, 1, value, name)
        assert newest_value(checkpoints) == value


def test_one_that_was_moved_aside_for_its_successor_is_put_back(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 1, 1.0, "stage-0-base")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Path, "replace", killed)
        save(checkpoints, 1, 2.0, "stage-0-base")
    checkpoints.put_back()
    assert newest_value(checkpoints) == 1.0
    save(checkpoints, 1, 3.0, "stage-0-base")
    checkpoints.put_back()
    assert newest_value(checkpoints) == 3.0 and [path.name for path in checkpoints.directory.iterdir()] == [
        "stage-0-base"
    ]


def killed(*_: Any) -> None:
    raise Killed


@pytest.mark.usefixtures("cut_off")
def test_an_old_checkpoint_that_was_half_removed_counts_no_longer(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1, 1.0, keep=1)
    with pytest.raises(Killed):
        save(checkpoints, 2, 2.0, keep=1)
    assert [progress.version for _, progress in checkpoints.all()] == [2]


def test_whoever_looks_while_the_learner_removes_some_sees_the_whole_ones(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``headrace eval`` and ``fork`` beside a run: between finding a checkpoint and reading its header it may go."""
    for version in (1, 2):
        save(checkpoints, version, float(version))
    reads = checkpoint.read_progress

    def late(path: Path) -> Progress:
        if path.name.startswith("step-00000001"):
            save(checkpoints, 3, 3.0)
        return reads(path)

    monkeypatch.setattr(checkpoint, "read_progress", late)
    assert min(p.version for _, p in checkpoints.all()) == 2
    (checkpoints.newest() or [Path()])[0].joinpath(checkpoint.STATE).write_text("{")
    with pytest.raises(CheckpointError, match="no readable checkpoint at"):
        checkpoints.all()
