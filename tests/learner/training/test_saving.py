"""Checkpoints are written beside training: what is saved is the state of that moment, whatever is trained meanwhile."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import HANG
from ring import Killed, ring
from torch import Tensor

from learner.model.load import load_model
from learner.training import saving
from learner.training.checkpoint import Checkpoints, read_state
from learner.training.saving import write_tensors
from learner.training.trainer import state_sha256

SHORT = ("stage.0.steps=2", "stage.1.steps=8", "stage.1.eval_every=0", "stage.2.questions=4")


class Held:
    """Lets the tensors of a checkpoint be written when ``go`` is set, or breaks off in the middle when ``end`` is called."""

    def __init__(self) -> None:
        self.begun, self.go, self.broken = threading.Event(), threading.Event(), False

    def __call__(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        half = dict(list(tensors.items())[: len(tensors) // 2])
        write_tensors(half, path)
        self.begun.set()
        assert self.go.wait(HANG)
        if self.broken:
            raise Killed
        write_tensors(tensors, path)

    def end(self) -> None:
        self.broken = True
        self.go.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Held]]:
    made: list[Held] = []

    def hold() -> Held:
        made.append(Held())
        monkeypatch.setattr(saving, "write_tensors", made[-1])
        return made[-1]

    yield hold
    for each in made:
        each.end()


@pytest.mark.long
def test_training_goes_on_while_a_checkpoint_is_written_and_it_holds_the_state_of_its_moment(
    tmp_path: Path, held: Callable[[], Held]
) -> None:
    sha: dict[int, str] = {}
    with ring(tmp_path, *SHORT, "learner.checkpoint_every=3", "learner.keep_checkpoints=9") as made:

        def saw(version: int) -> None:
            assert made.learner is not None
            sha[version] = state_sha256(made.learner.state.model)
            if version == 3:
                writing.append(held())
            if version == 6:  # two steps behind the one that was saved
                assert (
                    writing[0].begun.is_set() and not (tmp_path / "checkpoints" / "step-00000004-1-00000003").exists()
                )
                writing[0].go.set()

        writing: list[Held] = []
        made.on_publish = saw
        assert made.run()
        saved = tmp_path / "checkpoints" / "step-00000004-1-00000003"
        assert state_sha256(load_model(str(saved))) == sha[4]
        assert read_state(saved)["optimizer"][0]["state"][0]["step"] == 3.0
        assert not made.verify().problems and not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.long
def test_a_kill_in_the_middle_of_a_save_leaves_the_older_checkpoint_and_the_run_is_redone(
    tmp_path: Path, held: Callable[[], Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ring(tmp_path, *SHORT, "learner.checkpoint_every=2") as made:

        def killing(version: int) -> None:
            if version == 4:
                writing.append(held())  # the save after step 5 never ends
            if version == 6:
                assert writing[0].begun.wait(HANG)
                made.on_publish = lambda version: None
                raise Killed

        writing: list[Held] = []
        made.on_publish = killing
        made.killed()
        monkeypatch.undo()
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        newest = checkpoints.newest()
        assert newest is not None and newest[1].version == 3
        assert len(list((tmp_path / "checkpoints").glob(".step-00000005*"))) == 1, "half a checkpoint lies beside"
        assert made.run()
        audit = made.verify()
        assert (audit.steps, audit.trained, audit.outstanding, audit.problems) == (8, 32, 0, [])
        assert not list((tmp_path / "checkpoints").glob(".*")), "and is cleared away"


def test_what_safetensors_quotes_of_the_disk_is_said_as_the_error_that_it_is(tmp_path: Path) -> None:
    """The operating system refuses a file beyond a size, in a process of its own that has this limit."""
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
            write_tensors({"a": torch.ones(1 << 16)}, tmp_path / "a.safetensors")
        except OSError as error:
            os._exit(error.errno or 1)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EFBIG


@pytest.mark.long
def test_a_full_disk_under_a_checkpoint_ends_the_run_at_the_next_step_and_it_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the file of the tensors meets it: a limit of the process would hit the log as well."""

    def full(tensors: Mapping[str, Tensor], path: Path) -> None:
        with Path("/dev/full").open("wb", 0) as file:  # the device that is always full
            file.write(b"tensors")

    with ring(tmp_path, *SHORT, "learner.checkpoint_every=2") as made:

        def filling(version: int) -> None:
            monkeypatch.setattr(saving, "write_tensors", full if version >= 4 else write_tensors)

        made.on_publish = filling
        with pytest.raises(OSError) as failure:
            made.run()
        assert failure.value.errno == errno.ENOSPC
        assert len(made.results()) < 8, "it is not left to the end"
        monkeypatch.undo()
        made.on_publish = lambda version: None
        assert made.run() and not made.verify().problems


def test_tied_tensors_stay_one_and_the_room_is_used_again(tmp_path: Path) -> None:
    class State:
        """What a saver takes of a learner's state."""

        train = None
        model_path = str(Path(__file__).resolve().parents[3] / "recipes" / "tiny_model")
        model: Any = load_model(model_path, init="random")

        def adapter_files(self) -> None:
            return None

    saver, state = saving.WholeSaver(), State()
    first = saver._keep(state, {"a": torch.arange(3)})  # type: ignore[arg-type]
    embedding = state.model.get_input_embeddings().weight
    assert state.model.get_output_embeddings().weight is embedding, "the model of this test ties them"
    names = [n for n, t in first.weights.items() if t.shape == embedding.shape]
    assert len({first.weights[n].data_ptr() for n in names}) < len(names) or len(names) == 1
    with torch.no_grad():
        embedding += 1.0
    second = saver._keep(state, {"a": torch.arange(4)})  # type: ignore[arg-type]
    assert second.weights[names[0]].data_ptr() == first.weights[names[0]].data_ptr()
    assert torch.equal(second.weights[names[0]], embedding)
