"""Losses as pure functions of padded batches: ``N`` sequences of up to ``T`` response tokens. The trainer uses their parts.

    loss, metrics = grpo(logprobs_NT, behavior_logprobs_NT, advantages_N, mask_NT)

``logprobs_NT`` is differentiable, the others are constants; ``mask_NT`` bool. What is masked may hold anything, NaN included.
The names below load torch when they are first used: a command line reads ``learner.losses.table`` without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learner.losses.padded import async_objective as async_objective
    from learner.losses.padded import batch_loss as batch_loss
    from learner.losses.padded import dapo as dapo
    from learner.losses.padded import grpo as grpo
    from learner.losses.padded import topr as topr

__all__ = ["async_objective", "batch_loss", "dapo", "grpo", "topr"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("learner.losses.padded"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
