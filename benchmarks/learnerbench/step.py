"""A whole training step: where its time goes, and what a second thread gives."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch

from learner.tables import LearnerTable
from learner.training.optimizer import build_optimizer
from learner.training.trainer import TrainState, train_step

from . import cases

GROUPS, SIZE, PROMPT, ANSWER = 8, 8, 100, 100
PHASES = ("pack", "forward_backward", "optimizer")


def report(times: int, rounds: int) -> None:
    print(
        f"## A training step\n\n{GROUPS} groups of {SIZE}: prompts of {PROMPT} tokens, log-normal answers of {ANSWER} on average; objective `async`, AdamW, chunks of 4,096. Seconds by the clock, so another program on the machine makes them longer; CPU seconds of all threads beside them.\n"
    )
    print(
        "| threads | pack: s | forward and backward: s | optimizer: s | step: s | step: CPU s | tokens/CPU s | against one thread, by the clock |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    batch = cases.groups(rng, [PROMPT] * GROUPS, cases.long_tailed(rng, GROUPS * SIZE, GROUPS * SIZE * ANSWER, 4, 1024).reshape(GROUPS, SIZE), cases.VOCABULARY)  # fmt: skip
    tokens = sum(len(s.trajectory.tokens) for group in batch for s in group)
    table = LearnerTable.model_validate({"objective": "async", "optimizer": {"lr": 1e-5}})
    for _ in range(times):
        model = cases.build(cases.qwen2())
        state = TrainState.begin(model, build_optimizer(model, table.optimizer), 0, table)
        seen: dict[int, list[list[float]]] = {1: [], 2: []}
        for turn in range(rounds + 1):
            for threads, rows in seen.items():
                torch.set_num_threads(threads)
                clock, cpu = time.monotonic(), time.process_time()
                phases = train_step(state, batch, table, 1000).phases
                if turn:
                    rows.append(
                        [*(phases[name] for name in PHASES), time.monotonic() - clock, time.process_time() - cpu]
                    )
        torch.set_num_threads(1)
        middle = {threads: [median(column) for column in zip(*rows, strict=True)] for threads, rows in seen.items()}
        for threads, row in middle.items():
            print(
                f"| {threads} | {row[0]:.3f} | {row[1]:.2f} | {row[2]:.3f} | {row[3]:.2f} | {row[4]:.2f} | {tokens / row[4]:,.0f} | {middle[1][3] / row[3]:.2f} |",
                flush=True,
            )
