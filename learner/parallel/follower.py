"""The loop of every rank except 0: wait for orders and carry them out, one by one, until the end."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from broker.runfile import RunFile
from learner.config import LearnerConfig
from learner.model.load import set_gradient_checkpointing
from learner.parallel.pool import Pool
from learner.tables import SupervisedTable
from learner.training.memory import Activations
from learner.training.optimizer import Optimizers, build_optimizer
from learner.training.sft import take_documents
from learner.training.state import LearnerState
from learner.training.trainer import take_share


def follow(pool: Pool) -> None:
    """Carry out rank 0's orders until it ends. Ignores SIGTERM and SIGINT: rank 0 alone handles them, and finishes its work first."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    follower: Follower | None = None
    while (order := pool.heard()) is not None:
        name, fields = order
        if name == "begin":
            follower = Follower(pool, **fields)
        elif follower is not None:
            follower.orders[name](**fields)
    if follower is not None:
        follower.state.close()
    pool.end()


class Follower:
    """One rank's part of the state and of supervised training. ``orders`` maps the names that rank 0 may send to methods."""

    def __init__(self, pool: Pool, tables: dict[str, Any], base: str, model: str, seed: int, directory: str) -> None:
        self.pool = pool
        config = LearnerConfig(RunFile(tables, Path(base), Path(base) / "run.toml"))
        self.state = LearnerState(config, model, seed, Path(directory), pool)
        self._supervised: Optimizers | None = None
        self._extra: Any = {}
        self.orders: dict[str, Callable[..., Any]] = {
            "start": self.state.start,
            "load": self.load,
            "begin_stage": self.state.begin_stage,
            "drop": self.state.drop,
            "replace": self.replace,
            "step": self.step,
            "weights": self.weights,
            "save": self.save,
            "begin_sft": self.begin_sft,
            "resume_sft": self.resume_sft,
            "step_sft": self.step_sft,
        }

    def load(self, path: str) -> None:
        self._extra = self.state.load(Path(path))

    def step(self, stage: int, step: int, stage_step: int, rate: float) -> None:
        """One step of reinforcement learning."""
        train = self.state.train_of(stage)
        train.step, train.stage_step = step, stage_step
        take_share(train, self.pool.received(train.model.device), self.state.training(stage), rate)

    def replace(self, where: str) -> None:
        self._supervised, self._extra = None, {}
        self.state.replace(where)

    def weights(self) -> None:
        """Send this rank's part of the weights to rank 0."""
        deque(self.state.weights(), maxlen=0)

    def save(self, beside: str) -> None:
        extra = {"optimizers": self._supervised.state_dict()} if self._supervised is not None else {}
        self.state.write(Path(beside), extra)

    def begin_sft(self, stage: dict[str, Any]) -> None:
        table = SupervisedTable.model_validate(stage)
        torch.set_num_threads(table.threads)
        set_gradient_checkpointing(self.state.model, table.gradient_checkpointing)
        self._supervised = build_optimizer(self.state.model, table.optimizer)

    def resume_sft(self) -> None:
        assert self._supervised is not None
        self._supervised.load_state_dict(self._extra["optimizers"])

    def step_sft(self, trained: int, rate: float) -> None:
        """One step of supervised training."""
        model = self.state.model
        assert self._supervised is not None
        share, activations = self.pool.received(model.device), Activations(model, model.device)
        take_documents(model, self._supervised, self.pool, share, trained, rate, activations)
