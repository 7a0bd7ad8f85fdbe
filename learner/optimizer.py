"""Optimizers and the learning rate. AdamW; with ``muon`` also Muon on the hidden matrices (K. Jordan, 2024)."""

from __future__ import annotations

import math
from typing import Any

import torch

from learner.config import OptimizerTable
from learner.muon import Muon
from learner.parallel.shards import is_sharded, whole

MUON_MOMENTUM = 0.95


class Optimizers:
    """One or two optimizers that step together. ``rate`` of each is a multiple of the common learning rate."""

    def __init__(
        self, parts: list[tuple[torch.optim.Optimizer, float]], parameters: list[torch.nn.Parameter], clip_norm: float
    ) -> None:
        self._parts, self._parameters, self._clip_norm = parts, parameters, clip_norm

    def set_lr(self, lr: float) -> None:
        for optimizer, rate in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = lr * rate

    def step(self) -> float:
        """Clip, step, and clear the gradients; returns the norm before clipping. A non-finite gradient makes no step."""
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)))
        if math.isfinite(norm):
            for optimizer, _ in self._parts:
                optimizer.step()
        for optimizer, _ in self._parts:
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer, _ in self._parts]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        for (optimizer, _), part in zip(self._parts, state, strict=True):
            own = [group.get("foreach") for group in optimizer.param_groups]  # how it is computed is no state
            optimizer.load_state_dict(part)
            for group, together in zip(optimizer.param_groups, own, strict=True):
                if "foreach" in group:
                    group["foreach"] = together


def build_optimizer(model: torch.nn.Module, table: OptimizerTable) -> Optimizers:
    """Optimizers over all parameters of ``model`` that take a gradient."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    everything = [p for _, p in named]
    heads = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        heads.add(id(head.weight))
    hidden = [p for p in everything if table.muon and p.ndim == 2 and id(p) not in heads]
    taken = {id(p) for p in hidden}
    rest = [p for p in everything if id(p) not in taken]
    together = True if any(is_sharded(p) for p in rest) else None  # torch itself takes sharded ones one by one
    adamw = torch.optim.AdamW(
        rest, lr=table.lr, betas=table.betas, eps=table.eps, weight_decay=table.weight_decay, foreach=together
    )
    parts: list[tuple[torch.optim.Optimizer, float]] = [(adamw, 1.0)]
    if hidden:
        muon = Muon(hidden, lr=table.lr * table.muon, weight_decay=table.weight_decay, momentum=MUON_MOMENTUM)
        parts.append((muon, table.muon))
    return Optimizers(parts, everything, table.clip_norm)


def learning_rate(table: OptimizerTable, step: int, total: int) -> float:
    """Rate of step ``step`` (from 0) of ``total``: linear warm-up, then constant, or falling to ``final_lr`` of it."""
    warm = min(1.0, (step + 1) / table.warmup_steps) if table.warmup_steps else 1.0
    return table.lr * warm * SCHEDULES[table.schedule](min(1.0, step / max(1, total)), table.final_lr)


SCHEDULES = {
    "constant": lambda done, final: 1.0,
    "linear": lambda done, final: max(final, 1.0 - done),
    "cosine": lambda done, final: final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done)),
}
