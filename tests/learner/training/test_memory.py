"""What the forward pass holds, and that gradient checkpointing holds less of it for the same gradients, bit for bit."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from learnertools import executor_of, judged_groups, take, unstarted
from transformers import GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

from broker.errors import RunFileError
from learner.model import lora
from learner.model.load import load_model, set_gradient_checkpointing
from learner.model.loraconfig import LoraTable
from learner.training.checkpoint import Checkpoints
from learner.training.logprobs import score
from learner.training.memory import held_for_backward
from learner.training.packing import Sequenced, pack
from learner.training.trainer import state_sha256, train_step

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SHAPES = [
    Qwen3Config(**SHAPE, num_hidden_layers=8, head_dim=8),
    LlamaConfig(**SHAPE, num_hidden_layers=8),
    Qwen2Config(**SHAPE, num_hidden_layers=8),
    GPT2Config(vocab_size=320, n_embd=32, n_layer=8, n_head=4, n_positions=256),
]


def gradients(model: Any, dtype: torch.dtype = torch.float32) -> tuple[dict[str, torch.Tensor], int]:
    """The gradient of the likelihood of some packed sequences, and the bytes that were held for it."""
    samples = [j.trajectory for group in judged_groups(2, longest=60) for j in group]
    (chunk,) = pack([Sequenced.of(t, i) for i, t in enumerate(samples)], 4096)
    model.zero_grad(set_to_none=True)
    with (
        held_for_backward(model, torch.device("cpu")) as held,
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        loss = -score(model, chunk).logprobs_M.sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, held.bytes


@pytest.fixture(params=SHAPES, ids=lambda c: c.model_type)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    torch.set_num_threads(1)
    request.param.save_pretrained(tmp_path)
    return load_model(str(tmp_path), init="random", seed=1)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapted", [False, True])
def test_checkpointed_layers_give_the_same_gradients_and_hold_less(
    model: Any, dtype: torch.dtype, adapted: bool
) -> None:
    if adapted:
        lora.adapt(model, LoraTable(rank=2), 1)
        for name, tensor in lora.adapters(model).items():
            if ".lora_B." in name:
                tensor.fill_(0.01)
    wanted, whole = gradients(model, dtype)
    set_gradient_checkpointing(model, True)
    found, less = gradients(model, dtype)
    assert found.keys() == wanted.keys() and len(wanted) == sum(p.requires_grad for p in model.parameters())
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert less < whole / 4, (less, whole)
    set_gradient_checkpointing(model, False)
    again, more = gradients(model, dtype)
    assert more == whole and all(torch.equal(again[name], wanted[name]) for name in wanted)


def test_what_is_held_grows_with_the_layers_unless_they_are_checkpointed(tmp_path: Path) -> None:
    """Of a checkpointed layer its input is held: T x D numbers, and nothing else."""
    held: dict[tuple[int, bool], int] = {}
    for depth in (4, 8):
        LlamaConfig(**SHAPE, num_hidden_layers=depth).save_pretrained(tmp_path / str(depth))
        model = load_model(str(tmp_path / str(depth)), init="random")
        for on in (False, True):
            set_gradient_checkpointing(model, on)
            held[depth, on] = gradients(model)[1]
    samples = [j.trajectory for group in judged_groups(2, longest=60) for j in group]
    (chunk,) = pack([Sequenced.of(t, i) for i, t in enumerate(samples)], 4096)
    a_layer = len(chunk.tokens_T) * SHAPE["hidden_size"] * 4
    assert held[8, True] - held[4, True] == 4 * a_layer
    assert held[8, False] - held[4, False] > 10 * 4 * a_layer


def test_what_autograd_holds_is_counted_once_and_let_go() -> None:
    layer = torch.nn.Linear(64, 64, bias=False)
    x = torch.randn(8, 64)
    with held_for_backward(layer, torch.device("cpu")) as held:
        y = layer(x)
        z = (y[:4] * y[4:]).sum() + (2 * y).exp().sum()
    # x by the layer, the halves of y by their product, and what exp gives by exp
    assert held.bytes == 3 * x.nbytes, "no weight; two views of one storage are that storage"
    gone = weakref.ref(y)
    gc.disable()
    try:
        del y, z
        assert gone() is None, "there is no cycle"
    finally:
        gc.enable()


def test_a_graph_that_is_dropped_on_the_way_is_not_held() -> None:
    layer = torch.nn.Linear(64, 64, bias=False)
    x = torch.randn(8, 64)
    with held_for_backward(layer, torch.device("cpu")) as held:
        for rows in (2, 4, 8, 2, 4, 8):
            layer(x[:rows]).exp()  # its place is the next one's
        kept = layer(x).exp()
    assert held.bytes == x.nbytes + kept.nbytes


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [{}, {"objective": {"name": "grpo", "kl": 0.1}}, {"dtype": "bfloat16"}, {"objective": "m2po"}]
)
def test_a_run_checkpointed_is_the_same_run(tiny_model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    plain = executor_of(tiny_model, tmp_path, options)
    first = take(plain, 3)
    checkpointed = executor_of(tiny_model, tmp_path, {**options, "gradient_checkpointing": True})
    second = take(checkpointed, 3)
    assert state_sha256(plain.model) == state_sha256(checkpointed.model)
    name = "activation_memory_bytes"
    assert [r.metrics[name] for r in second] < [r.metrics[name] for r in first]
    others = [{k: v for k, v in r.metrics.items() if k != name} for r in (*first, *second)]
    assert others[:3] == others[3:]


def test_it_may_be_switched_on_in_the_middle_of_a_stage(tiny_model: Path, tmp_path: Path) -> None:
    whole = executor_of(tiny_model, tmp_path, {})
    take(whole, 3)
    half = executor_of(tiny_model, tmp_path, {})
    take(half, 2)
    path = half.save(Checkpoints(tmp_path / "checkpoints"), 1)
    half.close()
    resumed = unstarted(tiny_model, tmp_path, {"gradient_checkpointing": True, "offload": "optimizer"})
    resumed.load(path)
    take(resumed, 1)
    assert resumed.model.is_gradient_checkpointing and state_sha256(resumed.model) == state_sha256(whole.model)


def test_a_model_without_layers_to_checkpoint_is_refused(model: Any) -> None:
    model.supports_gradient_checkpointing = False
    with pytest.raises(
        RunFileError, match=r"gradient_checkpointing = true: .* does not support gradient checkpointing"
    ):
        set_gradient_checkpointing(model, True)


def test_a_step_tells_what_it_takes(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, {})
    metrics = take(executor, 1)[0].metrics
    size = sum(p.nbytes for p in executor.model.parameters())
    assert metrics["parameter_bytes"] == metrics["trained_parameter_bytes"] == size
    assert metrics["optimizer_state_bytes"] == 2 * size, "two moments"
    assert metrics["activation_memory_bytes"] > 0


def test_a_step_without_a_chunk_tells_no_activations(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, {})
    take(executor, 1)
    assert executor.train is not None
    silent = [[j._replace(reward=0.5) for j in group] for group in judged_groups(2)]
    assert "activation_memory_bytes" not in train_step(executor.train, silent, executor.config.learner, 10).metrics
