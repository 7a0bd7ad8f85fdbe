"""What engines get: the weights in the type that was asked for, tensor by tensor, whole at the receiver."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from learnertools import executor_of, take
from patience import HANG
from safetensors.torch import load_file
from torch import Tensor

from broker.control.server import ControlServer
from broker.errors import WeightPushError
from broker.weights import layout
from broker.weights.client import WeightClient
from broker.weights.publisher import WeightPublisher
from broker.weights.receiver import DistributedReceiver
from learner.model.policy import PolicyWeights
from learner.training.checkpoint import Checkpoints

LORA = {"lora": {"rank": 4}}


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.float32),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"publish_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "bfloat16", "publish_dtype": "float32"}, torch.float32),
    ],
)
@pytest.mark.parametrize("adapted", [{}, LORA])
def test_weights_are_published_in_the_type_of_the_run_file(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any], adapted: dict[str, Any], dtype: torch.dtype
) -> None:
    executor = executor_of(tiny_model, tmp_path, {**options, **adapted})
    take(executor, 1)
    found = PolicyWeights(executor.model, executor.published_dtype, tied=False)
    masters = PolicyWeights(executor.model)
    assert {t.dtype for t in masters.values()} == {torch.float32}
    assert {t.dtype for t in found.values()} == {dtype}
    assert all(torch.equal(t, masters[name].to(dtype)) for name, t in found.items())
    numbers = sum(p.numel() for p in PolicyWeights(executor.model, tied=False).values())
    assert sum(t.nbytes for t in found.values()) == numbers * dtype.itemsize
    assert layout.places(layout.specs_of(found))[1] == pytest.approx(numbers * dtype.itemsize, abs=64)
    assert "lm_head.weight" not in found and "model.embed_tokens.weight" in found, "tied ones once"
    path = executor.save(Checkpoints(tmp_path / "checkpoints"), 1)
    executor.close()
    saved = load_file(path / "model.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.float32}, "checkpoints hold the masters"
    assert all(torch.equal(t, masters[name]) for name, t in saved.items())


def test_without_adapters_and_rounding_nothing_is_copied(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, {})
    own = executor.model.state_dict()
    assert all(
        t.data_ptr() == own[name].data_ptr()
        for name, t in PolicyWeights(executor.model, executor.published_dtype, tied=False).items()
    )


class Counting(Mapping[str, Tensor]):
    """Weights that count how often each is computed."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.asked.append(name)
        return self._weights[name]

    def __iter__(self) -> Any:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def test_a_snapshot_computes_each_tensor_once(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, {"publish_dtype": "bfloat16", **LORA})
    take(executor, 1)
    specs = layout.specs_of(PolicyWeights(executor.model, executor.published_dtype, tied=False))
    flat = torch.zeros(layout.places(specs)[1], dtype=torch.uint8)
    weights = Counting(PolicyWeights(executor.model, executor.published_dtype, tied=False))
    layout.write(specs, weights.items(), flat)
    assert weights.asked == [spec.name for spec in specs]
    assert all(
        torch.equal(t, PolicyWeights(executor.model, executor.published_dtype, tied=False)[name])
        for name, t in layout.views(specs, flat).items()
    )
    with pytest.raises(WeightPushError, match=r"'model.*' torch.float32 .* came where"):
        layout.write(specs, PolicyWeights(executor.model).items(), flat)


@pytest.mark.long
def test_a_receiver_holds_exactly_the_rounded_weights(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, {"dtype": "bfloat16", **LORA})
    template = tmp_path / "template"
    template.mkdir()
    (template / "config.json").write_text("{}")
    control = ControlServer(lease=3.0)
    publisher = WeightPublisher(control, tmp_path / "weights", template=template, timeout=20.0, bucket_bytes=1 << 16)
    took, arrived = dict[str, Tensor](), threading.Event()

    def take_in(version: int, tensors: Mapping[str, Tensor]) -> None:
        took.update({name: t.clone() for name, t in tensors.items()})
        arrived.set()

    client = WeightClient("a receiver", DistributedReceiver(take_in))
    try:
        publisher.warm(executor.specs())
        client.connect(control.endpoint)
        while not control.receivers():
            arrived.wait(0.05)
        take(executor, 2)
        publisher.publish(1, PolicyWeights(executor.model, executor.published_dtype, tied=False))
        assert publisher.wait(HANG) and arrived.wait(HANG)
    finally:
        client.close()
        publisher.close()
        control.close()
    wanted = PolicyWeights(executor.model, tied=False)
    assert took.keys() == wanted.keys()
    for name, tensor in took.items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, wanted[name].to(torch.bfloat16)), name
    assert publisher.stats.bytes < 0.51 * sum(t.nbytes for t in wanted.values())
    saved = load_file(tmp_path / "weights" / "v-00000001" / "model.safetensors")
    assert all(torch.equal(t, took[name]) for name, t in saved.items())
