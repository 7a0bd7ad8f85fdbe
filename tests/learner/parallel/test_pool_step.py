"""A step of a pool is the step of one process: loss, metrics and weights after ten steps, on real ranks over gloo."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from pooltools import Ranks, executor, steps
from safetensors.torch import load_file, save_file

from learner.training.placement import ALONE

pytestmark = [pytest.mark.processes, pytest.mark.slow]

CASES: dict[str, dict[str, Any]] = {
    "async": {},
    "kl": {"objective": {"name": "grpo", "kl": 0.1, "ref_refresh": 4}},
    "m2po": {"objective": {"name": "m2po", "second_moment": 0.5}},
    "gspo": {"objective": "gspo"},
    "muon": {"optimizer": {"lr": 1e-4, "eps": 1e-3, "muon": 5.0, "weight_decay": 0.1}},
    "gathered": {"pool_memory": "gathered"},
    "entropy": {"objective": {"name": "grpo", "entropy_bonus": 0.01}},
    "checkpointing": {"gradient_checkpointing": True},
    "bfloat16": {"dtype": "bfloat16", "publish_dtype": "float32"},
    "minibatches": {"objective": "decoupled", "minibatches": 2, "pack_tokens": 64},
    "minibatches of m2po": {"objective": {"name": "m2po", "second_moment": 0.5}, "minibatches": 2},
    "few chunks": {"pack_tokens": 4096},
}


def main(pool: Any, model: str, *names: str) -> dict[str, Any]:
    """Of each case the metrics of the tenth step, and the file with the weights behind it."""
    out = {}
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            made = executor(pool, model, directory, **CASES[name])
            made.start("pretrained")
            metrics = steps(made, 1, 10)
        file = tempfile.mkstemp(suffix=".safetensors")[1]
        save_file({key: tensor.clone() for key, tensor in made.weights()}, file)
        tied = made.model.lm_head.weight is made.model.model.embed_tokens.weight
        out[name] = {"metrics": metrics, "weights": file, "tied": tied}
    return out


@pytest.fixture(scope="module")
def alone(tiny_model: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    return main(ALONE, str(tiny_model), *CASES)


def check(found: dict[str, Any], wanted: dict[str, Any], most: float = 1e-5) -> None:
    wanted["metrics"].pop("activation_memory_bytes", None)  # in a pool it cannot be told from weights that come and go
    assert found["tied"] and found["metrics"].keys() == wanted["metrics"].keys()
    for name, value in wanted["metrics"].items():
        assert math.isclose(found["metrics"][name], value, rel_tol=most, abs_tol=most), name
    weights, right = load_file(found["weights"]), load_file(wanted["weights"])
    assert weights.keys() == right.keys()
    for name, tensor in right.items():
        assert (weights[name] - tensor).abs().max() <= most, name


@pytest.fixture(scope="module")
def two(tiny_model: Path, two_ranks: Ranks) -> dict[str, Any]:
    return dict(two_ranks.call(__file__, str(tiny_model), *CASES))


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"bfloat16"}))
def test_two_ranks_take_the_step_of_one_process(alone: dict[str, Any], two: dict[str, Any], name: str) -> None:
    check(two[name], alone[name])


def test_bfloat16_computes_near_one_process_over_exact_weights(alone: dict[str, Any], two: dict[str, Any]) -> None:
    found, wanted = two["bfloat16"], alone["bfloat16"]
    assert found["metrics"]["entropy"] == pytest.approx(wanted["metrics"]["entropy"], rel=0.02)
    assert found["metrics"]["grad_norm"] == pytest.approx(wanted["metrics"]["grad_norm"], rel=0.2)
    assert {tensor.dtype for tensor in load_file(found["weights"]).values()} == {torch.float32}


def test_what_a_step_moves_is_far_above_what_is_asked_of_it(alone: dict[str, Any], tiny_model: Path) -> None:
    before, after = load_file(tiny_model / "model.safetensors"), load_file(alone["async"]["weights"])
    assert max(float((after[name] - tensor).abs().max()) for name, tensor in before.items()) > 1e-3


def test_three_ranks_with_fewer_chunks_than_ranks(alone: dict[str, Any], tiny_model: Path, three_ranks: Ranks) -> None:
    """Also where no dimension of the model is a multiple of the ranks."""
    found = three_ranks.call(__file__, str(tiny_model), "few chunks", "m2po")
    check(found["few chunks"], alone["few chunks"])
    check(found["m2po"], alone["m2po"])


@pytest.mark.gpu
def test_ranks_over_nccl_take_the_step_of_one_process(alone: dict[str, Any], tiny_model: Path) -> None:
    """Two GPUs, or one: then nothing crosses from rank to rank, but all of it goes the same way."""
    ranks = Ranks(min(2, torch.cuda.device_count()), "cuda")
    try:
        found = ranks.call(__file__, str(tiny_model), "async", "kl", "m2po", "muon", "gathered")
    finally:
        ranks.kill()
    for name, case in found.items():
        check(case, alone[name], 1e-4)
