"""What it gains to compute a prompt once for all samples of its group, and that it changes no log-probability."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from learner.training.logprobs import score
from learner.training.packing import Sequenced, pack

from . import cases
from .measuring import cpu_medians
from .packed import packed_step

SIZES, RATIOS, MEAN, CHUNK = (8, 16), ((1, 4), (1, 1), (4, 1)), 400, 4096


class Apart(Sequenced):
    """A sequence that shares nothing."""

    @property
    def shared(self) -> int:
        return 0


def apart(s: Sequenced) -> Sequenced:
    return Apart(s.tokens, s.mask, s.logprobs, s.versions, s.row)


def logprobs(model: Any, items: list[Sequenced], rows: int) -> list[torch.Tensor]:
    """Of each sequence's trained tokens."""
    out = [torch.empty(0)] * rows
    with torch.no_grad():
        for chunk in pack(items, CHUNK):
            scores, place_M = score(model, chunk), chunk.sequence_T[chunk.mask_T]
            for place, row in enumerate(chunk.rows_N):
                out[row] = scores.logprobs_M[place_M == place]
    return out


def report(times: int, rounds: int) -> None:
    print(
        f"## Prompts shared by a group\n\nTwo groups, {MEAN} tokens a sample (answers log-normal), chunks of {CHUNK:,}, the model of the table above; forward and backward of GRPO.\n"
    )
    print(
        "| group | prompt : answer | computed tokens: each its own | shared | each its own: s | shared: s | times as fast | largest difference of a log-probability |"
    )
    print("|---|---|---|---|---|---|---|---|")
    model = cases.build(cases.qwen2())
    for size in SIZES:
        for prompt_part, answer_part in RATIOS:
            for seed in range(times):
                rng = np.random.default_rng(seed)
                prompt = MEAN * prompt_part // (prompt_part + answer_part)
                items: list[Sequenced] = []
                for _ in range(2):
                    tokens = rng.integers(0, cases.VOCABULARY, prompt)
                    answers = cases.long_tailed(rng, size, size * (MEAN - prompt), 2, 2048)
                    items += [
                        cases.sequence(rng, len(items) + i, tokens, int(n), cases.VOCABULARY)
                        for i, n in enumerate(answers)
                    ]
                advantages_N = torch.from_numpy(rng.normal(size=len(items))).float()
                ways = {"own": [apart(s) for s in items], "shared": items}
                found = {name: logprobs(model, part, len(items)) for name, part in ways.items()}
                gap = max(float((a - b).abs().max()) for a, b in zip(*found.values(), strict=True))
                packed_step(model, items, advantages_N, CHUNK)
                seconds = cpu_medians(
                    {
                        name: lambda part=part, a=advantages_N: packed_step(model, part, a, CHUNK)
                        for name, part in ways.items()
                    },
                    rounds,
                )
                count = {name: sum(len(c.tokens_T) for c in pack(part, CHUNK)) for name, part in ways.items()}
                a, b = seconds["own"], seconds["shared"]
                print(
                    f"| {size} | {prompt_part}:{answer_part} | {count['own']:,} | {count['shared']:,} | {a:.2f} | {b:.2f} | {a / b:.2f} | {gap:.1e} |",
                    flush=True,
                )
