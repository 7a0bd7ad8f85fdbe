"""Offloading: whatever lies where, the result is the same; and it lies where it should."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from learnertools import executor_of, take, unstarted

from learner.model.load import load_model
from learner.tables import OptimizerTable
from learner.training.checkpoint import Checkpoints
from learner.training.optimizer import build_optimizer, chunked, move_state, stream
from learner.training.residence import Parameters, Residence
from learner.training.trainer import state_sha256

KL = {"name": "grpo", "kl": 0.1, "ref_refresh": 2}
CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_model: Path) -> Any:
    torch.set_num_threads(1)
    return load_model(str(tiny_model))


def with_gradients(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("muon", [0.0, 5.0])
@pytest.mark.parametrize("size", [1, 1 << 16, 1 << 40])
def test_a_streamed_step_is_the_whole_step(model: Any, muon: float, size: int) -> None:
    other = copy.deepcopy(model)
    table = OptimizerTable(lr=1e-3, muon=muon, weight_decay=0.1, clip_norm=1e12)
    whole, parts = build_optimizer(model, table), build_optimizer(other, table)
    for step in range(3):
        for it in (model, other):
            with_gradients(it, step)
        whole.step()
        for optimizer, _ in parts._parts:
            stream(optimizer, size)
    assert state_sha256(model) == state_sha256(other)
    for one, two in zip(whole.state_dict(), parts.state_dict(), strict=True):
        assert one["param_groups"] == two["param_groups"] and one["state"].keys() == two["state"].keys()
        for number, state in one["state"].items():
            assert all(torch.equal(value, two["state"][number][name]) for name, value in state.items())


def test_chunks_are_cut_by_size_and_what_is_one_batch_stays_whole(model: Any) -> None:
    parameters = list(model.parameters())
    assert [len(c) for c in chunked(parameters, 1)] == [1] * len(parameters)
    assert chunked(parameters, 1 << 40) == [parameters]
    alike = chunked(parameters, 1, alike=True)
    assert sorted(len(c) for c in alike)[-1] > 1 and sum(len(c) for c in alike) == len(parameters)
    assert len(alike) == len({p.shape for p in parameters})


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [{}, {"objective": KL}, {"lora": {"rank": 4}, "objective": KL}, {"objective": "m2po"}]
)
@pytest.mark.parametrize("offload", ["optimizer", "all"])
def test_an_offloaded_run_is_the_same_run(
    tiny_model: Path, tmp_path: Path, offload: str, options: dict[str, Any]
) -> None:
    plain = executor_of(tiny_model, tmp_path, options)
    offloaded = executor_of(tiny_model, tmp_path, {**options, "offload": offload})
    assert [r.metrics for r in take(plain, 4)] == [r.metrics for r in take(offloaded, 4)]
    assert state_sha256(plain.model) == state_sha256(offloaded.model)


@pytest.mark.long
@pytest.mark.parametrize("before", ["none", "all"])
@pytest.mark.parametrize("after", ["none", "optimizer"])
def test_a_checkpoint_is_the_same_whatever_lies_where(
    tiny_model: Path, tmp_path: Path, before: str, after: str
) -> None:
    whole = executor_of(tiny_model, tmp_path, {"optimizer": {"lr": 1e-3, "muon": 5.0}})
    take(whole, 4)
    half = executor_of(tiny_model, tmp_path, {"optimizer": {"lr": 1e-3, "muon": 5.0}, "offload": before})
    take(half, 2)
    path = half.save(Checkpoints(tmp_path / "checkpoints"), 1)
    half.close()
    resumed = unstarted(tiny_model, tmp_path, {"optimizer": {"lr": 1e-3, "muon": 5.0}, "offload": after})
    resumed.load(path)
    take(resumed, 2)
    assert state_sha256(resumed.model) == state_sha256(whole.model)


def test_stowed_parameters_stay_the_same_objects_with_the_same_values(model: Any) -> None:
    before, wanted = list(model.parameters()), state_sha256(model)
    places = [p.data_ptr() for p in before]
    parameters = Parameters(model, CPU)
    parameters.stow()
    assert all(p.data_ptr() != place for p, place in zip(model.parameters(), places, strict=True))
    stowed = [p.data_ptr() for p in before]
    assert state_sha256(model) == wanted and all(p is q for p, q in zip(before, model.parameters(), strict=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight, "tied weights stay tied"
    parameters.stow()
    assert [p.data_ptr() for p in before] == stowed, "twice is once"
    parameters.fetch()
    assert not {p.data_ptr() for p in before} & {*stowed} and state_sha256(model) == wanted
    parameters.stow()
    assert [p.data_ptr() for p in before] == stowed, "the host's places are kept"


def test_training_goes_on_over_every_move(model: Any) -> None:
    other = copy.deepcopy(model)
    table = OptimizerTable(lr=1e-3)
    still, moving = build_optimizer(model, table), build_optimizer(other, table)
    parameters = Parameters(other, CPU)
    for step in range(4):
        with_gradients(model, step)
        still.step()
        parameters.fetch()
        with_gradients(other, step)
        moving.step()
        parameters.stow()
        assert state_sha256(model) == state_sha256(other)


def test_frozen_parameters_are_copied_out_only_when_they_have_changed(model: Any, tiny_model: Path) -> None:
    model.requires_grad_(False)
    parameters = Parameters(model, CPU)
    parameters.stow()
    held = {p: parameters._copies[p].tensor for p in model.parameters()}
    parameters.fetch()
    marked = model.lm_head.weight
    held[marked].fill_(7)  # nobody else would: it shows whether the copy is taken again
    parameters.stow()
    assert bool((marked == 7).all())
    parameters.fetch()
    model.load_state_dict(load_model(str(tiny_model)).state_dict())
    parameters.stow()
    assert state_sha256(model) == state_sha256(load_model(str(tiny_model))), "a refresh is seen"


def test_on_a_cpu_nothing_moves(model: Any) -> None:
    reference = copy.deepcopy(model)
    optimizers = build_optimizer(model, OptimizerTable(lr=1e-3))
    with_gradients(model, 0)
    optimizers.step()
    wanted = [t.data_ptr() for t in (*model.parameters(), *reference.parameters())]
    residence = Residence(model, optimizers, reference)
    residence.to_host()
    residence.to_device()
    assert [t.data_ptr() for t in (*model.parameters(), *reference.parameters())] == wanted
    assert residence.device == CPU


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options", [{}, {"objective": KL}, {"lora": {"rank": 4}, "objective": KL}, {"optimizer": {"lr": 1e-3, "muon": 5.0}}]
)
@pytest.mark.parametrize("offload", ["optimizer", "all"])
def test_an_offloaded_run_on_a_gpu_is_the_same_run(
    tiny_model: Path, tmp_path: Path, offload: str, options: dict[str, Any]
) -> None:
    options = {**options, "device": "cuda"}
    plain = executor_of(tiny_model, tmp_path, options)
    offloaded = executor_of(tiny_model, tmp_path, {**options, "offload": offload})
    first, second = take(plain, 4), take(offloaded, 4)
    assert [r.metrics["loss"] for r in first] == [r.metrics["loss"] for r in second]
    assert state_sha256(plain.model) == state_sha256(offloaded.model)
    assert offloaded.train is not None
    for optimizer, _ in offloaded.train.optimizers._parts:
        for state in optimizer.state.values():
            assert all(t.device == CPU and (t.is_pinned() or not t.ndim) for t in state.values())
    where = {p.device.type for p in offloaded.model.parameters()}
    assert where == ({"cpu"} if offload == "all" else {"cuda"})
    path = offloaded.save(Checkpoints(tmp_path / "checkpoints"), 1)
    offloaded.close()
    resumed = unstarted(tiny_model, tmp_path, {**options, "offload": offload})
    resumed.load(path)
    take(plain, 2)
    take(resumed, 2)
    assert state_sha256(plain.model) == state_sha256(resumed.model)


@pytest.mark.gpu
def test_a_gpu_is_given_back_and_taken_again(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), device="cuda")
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizers = build_optimizer(model, OptimizerTable(lr=1e-3))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step()
    wanted, full = state_sha256(model), torch.cuda.memory_allocated()
    residence = Residence(model, optimizers, reference)
    for _ in range(2):
        residence.to_host()
        left = full - torch.cuda.memory_allocated()
        assert left >= 4 * sum(p.nbytes for p in model.parameters()), "weights, two moments, and the reference"
        assert {p.device.type for it in (model, reference) for p in it.parameters()} == {"cpu"}
        assert state_sha256(model) == wanted
        residence.to_device()
        assert {p.device.type for it in (model, reference) for p in it.parameters()} == {"cuda"}
        assert state_sha256(model) == wanted


@pytest.mark.gpu
def test_state_moves_and_stays_pinned(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), device="cuda")
    adamw = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    adamw.step()
    move_state(adamw, list(model.parameters()), CPU)
    assert all(s["exp_avg"].is_pinned() for s in adamw.state.values())
    move_state(adamw, list(model.parameters()), None)
    assert all(s["exp_avg"].is_cuda and s["exp_avg"].abs().sum() > 0 for s in adamw.state.values())
