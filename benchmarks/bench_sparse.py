"""How much of the weights a step changes in bfloat16, and what it costs to find and to make the changes: ``python -m benchmarks.bench_sparse MODEL``.

Three steps of AdamW on gradients of the model's own loss on text of this project (64 tokens each, computed once, at the first weights), at the
learning rates of reinforcement. What is told is the third step, whose moments have left their beginning.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from broker.weights.layout import checksum, places, specs_of, write
from broker.weights.sparse import apply, encode

RATES = (1e-6, 3e-6, 1e-5)
TOKENS, STEPS = 64, 3


def main() -> None:
    torch.set_num_threads(1)
    where = sys.argv[1]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32),
        AutoTokenizer.from_pretrained(where),
    )
    text = (Path(__file__).resolve().parents[1] / "docs" / "architecture.md").read_text()
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    named = dict(model.named_parameters())
    gradients = []
    for number in range(STEPS):
        model.zero_grad()
        piece = ids[None, number * TOKENS : (number + 1) * TOKENS]
        model(input_ids=piece, labels=piece).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in named.items()})
    first = {n: p.detach().clone() for n, p in named.items()}
    size = 2 * sum(p.numel() for p in named.values())
    for rate in RATES:
        for name, parameter in named.items():
            parameter.data.copy_(first[name])
        optimizer = torch.optim.AdamW(named.values(), lr=rate, weight_decay=0.0, fused=True)
        snapshots = []
        for gradient in gradients:
            for name, parameter in named.items():
                parameter.grad = gradient[name]
            optimizer.step()
            snapshots = [*snapshots[-1:], flat_of({n: p.detach().bfloat16() for n, p in named.items()})]
        before, after = snapshots
        started = time.process_time()
        changes = encode(before, after, size)
        found = time.process_time() - started
        assert changes is not None
        started = time.process_time()
        apply(before, changes)
        made = time.process_time() - started
        assert torch.equal(before, after) and checksum(before) == checksum(after)
        row = {
            "lr": rate, "parameters": size // 2, "changed": round(changes.numel() / 4 / (size / 2), 5), "whole_mb": round(size / 1e6, 1),
            "changes_mb": round(changes.numel() / 1e6, 2), "find_cpu_s": round(found, 3), "make_cpu_s": round(made, 3),
        }  # fmt: skip
        print(json.dumps(row), flush=True)


def flat_of(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    specs = specs_of(tensors)
    flat = torch.zeros(places(specs)[1], dtype=torch.uint8)
    write(specs, tensors.items(), flat)
    return flat


if __name__ == "__main__":
    main()
