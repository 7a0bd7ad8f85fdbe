"""Adapters as directories: what peft loads, on the model that the stage began with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learnertools import executor_of, take
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from learner.model.policy import PolicyWeights
from learner.training.checkpoint import Checkpoints


@pytest.mark.long
def test_adapters_are_written_for_others_in_the_form_that_peft_loads(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, {"lora": {"rank": 4, "publish": "adapters"}})
    take(executor, 1)
    base = {name: t.clone() for name, t in PolicyWeights(executor.model, adapted=False).items()}
    for version in range(1, 5):
        executor.save_adapters(version)
        take(executor, 1)
    executor.save_adapters(5)
    home = tmp_path / "adapters" / "0-rl0"
    assert sorted(p.name for p in home.iterdir()) == ["base", "v-00000004", "v-00000005"]
    plain = AutoModelForCausalLM.from_pretrained(home / "base")
    assert all(torch.equal(t, base[name]) for name, t in plain.state_dict().items())
    path = executor.save(Checkpoints(tmp_path / "checkpoints"), 1)
    executor.close()
    ids = torch.arange(9)[None]
    wanted = AutoModelForCausalLM.from_pretrained(path)(ids).logits
    for directory in (home / "v-00000005", path / "adapter"):
        found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(home / "base"), str(directory))
        assert torch.allclose(found(ids).logits, wanted, atol=1e-5)
        assert found.peft_config["default"].base_model_name_or_path == str(home / "base")
        assert len(load_file(directory / "adapter_model.safetensors")) == 28
    assert not torch.allclose(plain(ids).logits, wanted, atol=1e-4)


def test_without_being_asked_for_no_adapters_are_written(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, {"lora": {"rank": 4}})
    take(executor, 1)
    executor.save_adapters(1)
    path = executor.save(Checkpoints(tmp_path / "checkpoints"), 1)
    executor.close()
    assert not (tmp_path / "adapters").exists() and not (path / "adapter").exists()
