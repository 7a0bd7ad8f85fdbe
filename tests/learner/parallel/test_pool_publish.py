"""Weights of a pool on their way to the actors: bucket by bucket into the publisher's buffer, the same as in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from patience import HANG
from pooltools import Ranks, executor, steps
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from broker.control.server import ControlServer
from broker.errors import WeightPushError
from broker.weights import layout
from broker.weights.publisher import WeightPublisher
from learner.model.load import save_shape
from learner.parallel.gather import buckets, owners
from learner.training.checkpoint import Checkpoints

pytestmark = [pytest.mark.processes, pytest.mark.slow]


def main(pool: Any, model: str, home: str) -> dict[str, Any]:
    """Publish the weights behind two steps, and save them; tells the most bytes that were gathered at once."""
    made = executor(pool, model, home, bucket_mb=0.25)
    made.start("pretrained")
    steps(made, 1, 2)
    control = ControlServer("tcp://127.0.0.1:0", None)
    save_shape(made.model, model, Path(home) / "template")
    publisher = WeightPublisher(control, Path(home) / "weights", template=Path(home) / "template")
    publisher.warm(made.specs())
    publisher.publish(7, made.weights())
    assert publisher.wait(HANG)
    publisher.close()
    control.close()
    return {"checkpoint": str(made.save(Checkpoints(Path(home) / "checkpoints"), 9, "same"))}


def test_what_is_published_is_what_is_saved(tiny_model: Path, two_ranks: Ranks, tmp_path: Path) -> None:
    checkpoint = Path(two_ranks.call(__file__, str(tiny_model), str(tmp_path))["checkpoint"])
    published = load_file(tmp_path / "weights" / "v-00000007" / "model.safetensors")
    saved = {n: t for file in checkpoint.glob("model-*") for n, t in load_file(file).items()}
    assert published.keys() == saved.keys() and all(torch.equal(published[n], saved[n]) for n in saved)
    assert any((tensor != load_file(tiny_model / "model.safetensors")[n]).any() for n, tensor in saved.items())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "weights" / "v-00000007")
    assert torch.equal(plain.lm_head.weight, published["model.embed_tokens.weight"])


def test_buckets_hold_every_tensor_once_and_no_more_than_they_may() -> None:
    named = [(f"p{i}", torch.zeros(i % 7 + 1, 16)) for i in range(40)] + [("big", torch.zeros(100, 16))]
    named.append(("counts", torch.zeros(4, dtype=torch.int64)))
    cut = buckets(named, 1000)
    assert [pair for bucket in cut for pair in bucket] == named
    for bucket in cut:
        assert sum(t.nbytes for _, t in bucket) <= 1000 or len(bucket) == 1
        assert len({t.dtype for _, t in bucket}) == 1
    held = [0] * 3
    for bucket, owner in zip(cut, owners(cut, 3), strict=True):
        held[owner] += sum(t.nbytes for _, t in bucket)
    assert max(held) - min(held) <= max(sum(t.nbytes for _, t in bucket) for bucket in cut)


@pytest.mark.parametrize("come", [["a", "c"], ["a"], ["a", "b", "c"], ["b", "a"]])
def test_tensors_that_are_not_those_that_were_told_are_refused(come: list[str]) -> None:
    tensors = {name: torch.ones(3) for name in "abc"}
    specs = layout.specs_of({name: tensors[name] for name in "ab"})
    with pytest.raises(WeightPushError, match="came"):
        layout.write(specs, ((name, tensors[name]) for name in come), torch.zeros(24, dtype=torch.uint8))
