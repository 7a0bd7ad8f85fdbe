"""A whole run with every memory option: its actors sample from the merged policy, and a replay gives the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from ringtools import end_run, headrace, sets, start_run, verify
from runlog import results_of, said
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from learner.model.load import load_model
from learner.training.checkpoint import read_state
from learner.training.trainer import state_sha256

OPTIONS = (
    "stage.0.lora.rank=4", "stage.0.gradient_checkpointing=true", "stage.0.offload=all",
    "learner.lora.rank=4", "learner.lora.publish=adapters", "learner.gradient_checkpointing=true", "learner.offload=all",
    "learner.optimizer.lr=1e-2", "stage.1.steps=8", "stage.1.eval_every=4",
)  # fmt: skip


@pytest.mark.timeout(300)
def test_a_run_with_every_memory_option_and_its_replay(tmp_path: Path) -> None:
    run = start_run(tmp_path, *sets(*OPTIONS))
    try:
        assert run.wait(200) == 0, said(tmp_path)
    finally:
        end_run(run)
    audit = verify(tmp_path)
    assert (audit["steps"], audit["trained"], audit["outstanding"]) == (8, 32, 0)
    results = results_of(tmp_path)
    assert len(results) == 8
    assert all(r.metrics["mismatch"] < 1e-4 for r in results if "mismatch" in r.metrics), (
        "actors hold the merged policy"
    )
    assert all(r.metrics["trained_parameter_bytes"] < 0.2 * r.metrics["parameter_bytes"] for r in results)

    base = tmp_path / "checkpoints" / "stage-0-base"
    assert read_state(base)["lora"]["rank"] == 4
    last = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    final = state_sha256(load_model(str(last)))
    assert final != state_sha256(load_model(str(base)))
    replayed = headrace("replay", str(tmp_path), "--steps", "2-9", "--out", str(tmp_path / "replay"))
    assert replayed.stdout.strip() == final, replayed.stderr
    other = headrace(
        "replay", str(tmp_path), "--steps", "2-8", "--out", str(tmp_path / "other"), "--set", "learner.lora.rank=2"
    )
    assert other.returncode == 0, other.stderr
    assert read_state(tmp_path / "other" / "replay-2-8")["lora"]["rank"] == 2

    adapters = sorted((tmp_path / "adapters" / "1-rl").iterdir())
    assert [p.name for p in adapters] == ["base", "v-00000008", "v-00000009"]
    begun = AutoModelForCausalLM.from_pretrained(adapters[0]).state_dict()
    assert all((begun[name] == t).all() for name, t in load_file(base / "model.safetensors").items())
