"""Tokens a second of the local engine on one thread, against transformers' generate in the same run."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from actors.engine import Completion, Request
from actors.local.engine import LocalEngine
from broker.messages import Sampling
from learner.model.load import load_model, save_model

TINY = str(Path(__file__).resolve().parent.parent / "recipes" / "tiny_model")
GROUPS, SIZE, ANSWER = 32, 16, 33


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        model = load_model(TINY, init="random")
        save_model(model, TINY, Path(directory))
        engine = LocalEngine(directory, slots=64, context=256)
        engine.apply(0, model.state_dict())
        rng = np.random.default_rng(0)
        prompts = [rng.integers(0, 300, 17).astype(np.int32) for _ in range(GROUPS)]
        limits = [int(n) for n in rng.integers(ANSWER // 2, ANSWER * 3 // 2, GROUPS)]
        rates = []
        for _ in range(4):
            for i, prompt in enumerate(prompts):
                engine.submit(Request(str(i), tuple(range(SIZE)), prompt, Sampling(max_new_tokens=limits[i])))
            done: list[Completion] = []
            start = time.process_time()
            while len(done) < GROUPS * SIZE:
                done += engine.poll(1.0)
            rates.append(sum(len(c.tokens) for c in done) / (time.process_time() - start))
        plain = AutoModelForCausalLM.from_pretrained(directory)
        batch = torch.from_numpy(np.repeat(np.stack(prompts[:4]), SIZE, 0)).long()
        slow = []
        for _ in range(3):
            start = time.process_time()
            with torch.no_grad():
                out = plain.generate(
                    batch, attention_mask=torch.ones_like(batch), do_sample=True, max_new_tokens=ANSWER, top_k=0
                )
            slow.append((out.shape[1] - 17) * len(batch) / (time.process_time() - start))
    print("| sampler, 64 slots, one thread | useful tokens per CPU second |\n|---|---|")
    print(f"| local engine, ragged groups of {SIZE} | {max(rates):,.0f} |")
    print(f"| transformers generate, batch 64 | {max(slow):,.0f} |")
    print(f"\nratio {max(rates) / max(slow):.1f}")


if __name__ == "__main__":
    main()
