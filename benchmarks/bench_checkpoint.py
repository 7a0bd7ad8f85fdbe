"""What a checkpoint of 135 M parameters costs the trainer: ``python -m benchmarks.bench_checkpoint [DIRECTORY]``.

A random Llama of SmolLM2-135M's shape with AdamW's state. The trainer's thread computes matrix products all the while: what a checkpoint
takes of it is the time it waits in ``save``, and what its steps are slower while the rest is written.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from learner.training.checkpoint import Checkpoints, Progress
from learner.training.saving import WholeSaver

TOKENIZER = str(Path(__file__).resolve().parents[1] / "recipes" / "tiny_model")
SHAPE = {
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
SAVES = 4


class State:
    """What a saver takes of a learner's state: a model, an optimizer that has stepped, and where training stands."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(LlamaConfig(**SHAPE))
        self.model_path, self.progress = TOKENIZER, Progress(steps_offset=1)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        self.train = self
        self.optimizers, self.reference = optimizer, None

    def adapter_files(self) -> None:
        return None


def steps(a: torch.Tensor, seconds: float, over: Any = None) -> float:
    """Matrix products a second in this time, or until it is ``over``."""
    started, done = time.monotonic(), 0
    while time.monotonic() - started < seconds and not (over is not None and over()):
        a @ a
        done += 1
    return done / (time.monotonic() - started)


def main() -> None:
    torch.set_num_threads(1)
    state, a = State(), torch.rand(256, 256)
    parameters = sum(p.numel() for p in state.model.parameters())
    found: dict[str, Any] = {
        "parameters": parameters,
        "bytes": parameters * 12,
        "blocked": [],
        "whole": [],
        "speed_beside": [],
    }
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as home:
        saver, checkpoints = WholeSaver(), Checkpoints(Path(home))
        for version in range(SAVES):
            alone = steps(a, 1.0)
            state.progress = Progress(version, steps_offset=version + 1)
            started = time.monotonic()
            saver.save(state, checkpoints, 1, "", {})  # type: ignore[arg-type]
            blocked = time.monotonic() - started
            beside = steps(a, 60.0, lambda: not saver.busy)
            saver.wait()
            found["blocked"].append(round(blocked, 3))
            found["whole"].append(round(time.monotonic() - started, 3))
            found["speed_beside"].append(round(beside / alone, 3))
        started = time.monotonic()
        saver.save(state, checkpoints, 1, "kept", {})  # type: ignore[arg-type]
        found["waited_for"] = round(time.monotonic() - started, 3)
    found["ratio"] = round(median(found["whole"][1:]) / median(found["blocked"][1:]), 1)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
