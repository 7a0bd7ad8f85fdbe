"""One experiment: the tiny task trained with data that is a fixed number of updates old, in one process and on one thread.

The same sampler, rewarders and training step as a run has, without log and daemons between them: version ``t + 1`` is trained on
what version ``max(0, t - lag)`` has sampled. The first ``lag`` steps all learn from the base, so equal work is ``steps + lag`` steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.engine import Request
from actors.episodes import Episode
from actors.local.engine import LocalEngine
from actors.prompting import array, render
from broker.chat import Chats
from broker.messages import Prompt, Sampling, Trajectory
from learner.data.sums import SignedSums
from learner.model.load import load_model
from learner.planning.groups import Judged
from learner.tables import LearnerTable
from learner.training.optimizer import build_optimizer
from learner.training.trainer import TrainState, train_step
from rewarders.format import Format
from rewarders.math import MathAccuracy

GROUPS, SIZE, ANSWER = 16, 16, 96
SLOTS, CONTEXT = 128, 256
QUESTIONS = 200
FINAL_SAMPLES = 3  # of each question, after the last step


@dataclass(frozen=True)
class Setting:
    """What is compared. ``options`` replace values of the named objective, ``steps`` come after the first ``lag``."""

    objective: str
    lag: int
    lr: float
    beta1: float
    base: int
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 40

    def table(self) -> LearnerTable:
        """The run file's table that says the same."""
        optimizer = {
            "lr": self.lr,
            "betas": (self.beta1, 0.95),
            "schedule": "linear",
            "final_lr": 0.1,
            **self.optimizer,
        }
        return LearnerTable.model_validate(
            {
                "objective": {"name": self.objective, **self.options},
                "optimizer": optimizer,
                "groups_per_step": GROUPS,
                "group_size": SIZE,
                "max_lag": self.lag,
                "sampling": {"temperature": 1.0, "max_new_tokens": ANSWER},
            }
        )


class Lab:
    """The sampler and the judges, which all experiments on one model shape share."""

    def __init__(self, base: Path, seed: int) -> None:
        torch.set_num_threads(1)
        self.base = base
        self.engine = LocalEngine(str(base), slots=SLOTS, context=CONTEXT, seed=seed)
        self.train, self.held_out = SignedSums(seed=seed + 1), SignedSums(seed=1_000_000, held_out=True)
        accuracy, form = MathAccuracy(), Format(boxed=True)
        self._right = lru_cache(1 << 16)(lambda text, answer: accuracy.extract(text) == answer)
        self._form = lru_cache(1 << 16)(form.fault)

    def ask(self, source: SignedSums, first: int, count: int, size: int) -> list[list[Trajectory]]:
        """``size`` samples of each of ``count`` questions, from the weights that the engine holds."""
        prompts: dict[str, Prompt] = {}
        for number in range(first, first + count):
            row = source.row(number)
            prompt = Prompt(
                f"sums-{number}@0", row.messages, size, row.answer, sampling=Sampling(max_new_tokens=ANSWER)
            )
            prompts[prompt.group_id] = prompt
        chats = Chats(self.engine.tokenizer)
        rendered = {name: render(chats, prompt) for name, prompt in prompts.items()}
        groups: dict[str, list[Trajectory]] = {name: [] for name in prompts}
        for name, prompt in prompts.items():
            self.engine.submit(Request(name, tuple(range(size)), array(rendered[name].ids), prompt.sampling))
        left = count * size
        while left:
            for done in self.engine.poll(1.0):
                name = done.group_id
                episode = Episode.begin(prompts[name], done.index, rendered[name])
                episode.hear(done)
                groups[name].append(episode.trajectory(self.engine.name, "lab"))
                left -= 1
        return [sorted(group, key=lambda t: t.index) for group in groups.values()]

    def right(self, sample: Trajectory) -> bool:
        return bool(self._right(sample.text, sample.answer))

    def reward(self, sample: Trajectory) -> float:
        """Accuracy + .2 format, as in recipes/tiny.toml."""
        return float(self.right(sample)) + 0.2 * (sample.finish_reason == "stop" and not self._form(sample.text))

    def pass_at_1(self, model: Any, version: int, samples: int) -> float:
        """On the held-out questions, which nobody trains on; ``samples`` of each, at temperature 1."""
        self.engine.apply(version, model.state_dict())
        answers = [s for group in self.ask(self.held_out, 0, QUESTIONS, samples) for s in group]
        return sum(map(self.right, answers)) / len(answers)


def experiment(base: Path, setting: Setting) -> dict[str, Any]:
    """Train by ``setting``; returns its fields, ``curve`` (pass@1 after each tenth step, behind the first ``lag``) and seconds."""
    torch.manual_seed(setting.base)
    started, lab, table = time.process_time(), Lab(base, setting.base), setting.table()
    model, total = load_model(str(base)), setting.steps + setting.lag
    state = TrainState.begin(model, build_optimizer(model, table.optimizer), 0, table)
    past: deque[dict[str, Tensor]] = deque(maxlen=setting.lag + 1)
    curve: dict[int, float] = {}
    metrics: dict[str, float] = {}
    for step in range(total):
        past.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
        lab.engine.apply(max(0, step - setting.lag), past[0])
        groups = lab.ask(lab.train, step * GROUPS, GROUPS, SIZE)
        judged = [[Judged(sample, lab.reward(sample)) for sample in group] for group in groups]
        metrics = train_step(state, judged, table, total).metrics
        done = step + 1 - setting.lag
        if done == setting.steps:
            curve[done] = lab.pass_at_1(model, step + 1, FINAL_SAMPLES)
        elif done > 0 and done % 10 == 0:
            curve[done] = lab.pass_at_1(model, step + 1, 1)
    lab.engine.close()
    last = {name: metrics[name] for name in ("trained_reward_mean", "entropy", "grad_norm") if name in metrics}
    return {**asdict(setting), "curve": curve, "last": last, "seconds": round(time.process_time() - started, 1)}
