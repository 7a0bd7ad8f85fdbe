"""Checkpoints of a pool: whole or not there, bit for bit on any number of ranks, and transformers loads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from patience import HANG
from pooltools import Ranks, executor, steps
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from broker.errors import CheckpointError
from learner.training.checkpoint import Checkpoints, Progress, read_progress, read_state
from learner.training.placement import ALONE

pytestmark = [pytest.mark.processes, pytest.mark.slow]

FILE = "headrace-00002-of-00002.safetensors"
SETTINGS = {"objective": {"name": "grpo", "kl": 0.1}, "optimizer": {"lr": 1e-3, "muon": 5.0}}
"""All that a state can have: a reference, and both optimizers."""


def main(plan: Any, model: str, home: str, *orders: str) -> list[str]:
    """Carry out orders: ``start``, ``load=PATH``, ``steps=FIRST-LAST``, ``save`` (in the background), ``named=NAME``, ``disk`` (wait
    for it)."""
    checkpoints, saved = SlowDisk(Path(home)), []
    made = executor(plan, model, home, **SETTINGS)
    for order in orders:
        what, _, value = order.partition("=")
        if what == "start":
            made.start("pretrained")
        elif what == "load":
            made.load(Path(value))
        elif what == "steps":
            steps(made, *map(int, value.split("-")))
        elif what == "disk":
            assert not Path(saved[-1]).exists(), "nothing bears a name that is not yet whole"
            checkpoints.free.set()
            made.close()
        elif what == "fails":
            with pytest.raises((CheckpointError, OSError)) as error:
                made.save(checkpoints, 9, value)
            saved.append(str(error.value))
            checkpoints.spoilt = ""
        elif what == "spoil":
            checkpoints.spoilt = value
        else:
            checkpoints.free = Event() if what == "save" else DONE
            saved.append(str(made.save(checkpoints, 9, value)))
    return saved


DONE = Event()
DONE.set()


class SlowDisk(Checkpoints):
    """A disk that is not done before ``free`` is set, and that refuses to write a file of the name ``spoilt``."""

    free, spoilt = DONE, ""

    def begin(self, progress: Progress, name: str = "") -> tuple[Path, Path]:
        final, beside = super().begin(progress, name)
        if self.spoilt:
            (beside / self.spoilt).mkdir()
        return final, beside

    def finish(self, *arguments: Any, **named: Any) -> Path:
        assert self.free.wait(HANG)
        return super().finish(*arguments, **named)


@pytest.fixture(scope="module")
def saved(tiny_model: Path, two_ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two ranks: saved after step 2, on a disk that is done only after step 4, and then once more."""
    home = tmp_path_factory.mktemp("two")
    orders = ("start", "steps=1-2", "save", "steps=3-4", "disk", "named=fourth")
    second, fourth = two_ranks.call(__file__, str(tiny_model), str(home), *orders)
    return {"second": Path(second), "fourth": Path(fourth)}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key != "foreach")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in path.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def test_every_rank_writes_a_part_and_transformers_loads_it_as_it_stands(saved: dict[str, Path]) -> None:
    path = saved["second"]
    names = {file.name for file in path.iterdir()}
    assert {f"{kind}-0000{rank}-of-00002.safetensors" for kind in ("model", "headrace") for rank in (1, 2)} < names
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(weights(path)) and "lm_head.weight" not in index["weight_map"]
    plain = AutoModelForCausalLM.from_pretrained(path)
    for name, tensor in weights(path).items():
        assert torch.equal(plain.state_dict()[name], tensor)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    progress = read_progress(path)
    assert (progress.version, progress.stage_step, progress.steps_offset) == (2, 2, 2)


def test_steps_go_on_while_the_disk_is_slow_and_leave_what_is_written_alone(
    saved: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    """The fixture's second checkpoint became whole behind its fourth step: what it holds is that of the second."""
    (one,) = take(None, str(tiny_model), str(tmp_path), "start", "steps=1-2", "named=one")
    for name, tensor in weights(saved["second"]).items():
        assert torch.allclose(weights(Path(one))[name], tensor, atol=1e-5)
    moved = [(weights(saved["fourth"])[name] - tensor).abs().max() for name, tensor in weights(saved["second"]).items()]
    assert max(moved) > 1e-3


def test_a_rank_that_cannot_write_leaves_no_checkpoint(tiny_model: Path, two_ranks: Ranks, tmp_path: Path) -> None:
    """Rank 1 finds a directory where its file is to be."""
    told = two_ranks.call(__file__, str(tiny_model), str(tmp_path), "start", f"spoil={FILE}", "fails=bad", "named=good")
    assert "could not write its part" in told[0] and Path(told[1]).name == "good"
    assert [path.name for path, _ in Checkpoints(tmp_path).all()] == ["good"]


def test_the_parts_hold_about_as_much_each(saved: dict[str, Path]) -> None:
    for kind in ("model", "headrace"):
        sizes = [file.stat().st_size for file in saved["second"].glob(f"{kind}-*")]
        assert max(sizes) < 1.3 * min(sizes)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_takes_it_up_bit_for_bit(
    saved: dict[str, Path], tiny_model: Path, tmp_path: Path, ranks: int, request: pytest.FixtureRequest
) -> None:
    """Loaded and written again by other ranks, and what they wrote by one process."""
    orders = (f"load={saved['second']}", "named=again", "steps=3-4", "named=later")
    pool = request.getfixturevalue({2: "two_ranks", 3: "three_ranks"}[ranks]) if ranks > 1 else None
    again, later = take(pool, str(tiny_model), str(tmp_path), *orders)
    assert same(read_state(Path(again)), read_state(saved["second"]))
    assert same(weights(Path(again)), weights(saved["second"]))
    (back,) = take(None, str(tiny_model), str(tmp_path), f"load={again}", "named=back")
    assert same(read_state(Path(back)), read_state(saved["second"]))
    for name, tensor in weights(saved["fourth"]).items():
        assert torch.equal(weights(Path(later))[name], tensor) if ranks == 2 else True
        assert torch.allclose(weights(Path(later))[name], tensor, atol=1e-5)


def take(pool: Ranks | None, *arguments: str) -> list[str]:
    """Have a pool, or this process, carry out orders."""
    torch.set_num_threads(1)
    return list(pool.call(__file__, *arguments)) if pool else main(ALONE, *arguments)


def test_a_pool_takes_up_what_one_process_wrote(tiny_model: Path, two_ranks: Ranks, tmp_path: Path) -> None:
    (one,) = take(None, str(tiny_model), str(tmp_path), "start", "steps=1-2", "named=one")
    (two,) = take(two_ranks, str(tiny_model), str(tmp_path), f"load={one}", "named=two")
    assert same(read_state(Path(two)), read_state(Path(one))) and same(weights(Path(two)), weights(Path(one)))


def damaged(path: Path, to: Path) -> Path:
    shutil.copytree(path, to)
    return to


def test_a_part_that_is_missing_or_cut_is_told(saved: dict[str, Path], tmp_path: Path) -> None:
    missing = damaged(saved["second"], tmp_path / "missing")
    (missing / FILE).unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(missing)
    cut = damaged(saved["second"], tmp_path / "cut")
    file = cut / FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(cut)
    mixed = damaged(saved["second"], tmp_path / "mixed")
    shutil.copy(mixed / "headrace-00001-of-00002.safetensors", mixed / FILE)
    with pytest.raises(CheckpointError, match="the pieces of"):
        read_state(mixed)
