"""Optimizers and the learning rate. AdamW; with ``muon`` also Muon on the hidden matrices (K. Jordan, 2024).

Offloaded, the state lies in the host's memory (S. Rajbhandari et al., ZeRO-Offload, arXiv 2101.06840), and the step runs on the
device over some parameters at a time, whose state comes and goes: the result is the same bit for bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from learner.tables import OptimizerTable
from learner.training.muon import Muon
from learner.training.residence import synchronise, to_device, to_host
from learner.training.shards import is_sharded, whole

MUON_MOMENTUM = 0.95
STREAMED = 1 << 28  # bytes of parameters whose offloaded state is on the device at a time (the state is twice as large)

FUSED = 10_000_000
"""Parameters from which on AdamW takes one pass over each (eight times as fast on a CPU at 135 million): below, what it rounds otherwise is
worth more than what it saves, because runs of small models that were recorded before are replayed bit for bit."""
FROM_FILE = ("betas", "eps", "weight_decay", "momentum")
"""Options of an optimizer that a run file may change between two starts."""


class Optimizers:
    """One or two optimizers that step together. ``rate`` of each is a multiple of the common learning rate."""

    def __init__(
        self,
        parts: list[tuple[torch.optim.Optimizer, float]],
        parameters: list[torch.nn.Parameter],
        clip_norm: float,
        offload: bool = False,
    ) -> None:
        self._parts, self._parameters, self._clip_norm, self.offload = parts, parameters, clip_norm, offload

    def set_lr(self, lr: float) -> None:
        for optimizer, rate in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = lr * rate

    def step(self) -> float:
        """Clip, step, and clear the gradients; returns the norm before clipping. With a non-finite gradient the weights stay as they are."""
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)))
        if math.isfinite(norm):
            for optimizer, _ in self._parts:
                stream(optimizer) if self.offload else optimizer.step()
        for optimizer, _ in self._parts:
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state_bytes(self) -> int:
        """Bytes of the state, wherever it lies."""
        return sum(
            t.nbytes for optimizer, _ in self._parts for state in optimizer.state.values() for t in tensors(state)
        )

    def state_to(self, device: torch.device) -> None:
        """Move the state of all parameters to ``device``."""
        for optimizer, _ in self._parts:
            move_state(optimizer, [p for group in optimizer.param_groups for p in group["params"]], device)

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer, _ in self._parts]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Take up what ``state_dict`` gave. Offloaded state goes past the device. What the run file says of an optimizer is no state."""
        for (optimizer, _), part in zip(self._parts, state, strict=True):
            own = [dict(group) for group in optimizer.param_groups]
            optimizer.load_state_dict(part if not self.offload else {**part, "state": {}})
            for group, mine in zip(optimizer.param_groups, own, strict=True):
                group.update({name: mine[name] for name in FROM_FILE if name in mine})
                if group.get("fused") and not mine.get(
                    "fused"
                ):  # what was begun otherwise goes on bit for bit, if it can
                    group.update(fused=mine.get("fused"), foreach=mine.get("foreach"))
            if not self.offload:
                continue
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            for number, parameter in enumerate(parameters):
                for name, value in part["state"].get(number, {}).items():
                    place = torch.empty_like(value, pin_memory=parameter.is_cuda and value.ndim > 0)
                    optimizer.state[parameter][name] = place.copy_(value)


def build_optimizer(model: torch.nn.Module, table: OptimizerTable, offload: bool = False) -> Optimizers:
    """Optimizers over all parameters of ``model`` that take a gradient; with ``offload`` their state lies in the host's memory."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    everything = [p for _, p in named]
    heads = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        heads.add(id(head.weight))
    hidden = [p for p in everything if table.muon and p.ndim == 2 and id(p) not in heads]
    taken = {id(p) for p in hidden}
    rest = [p for p in everything if id(p) not in taken]
    adamw = torch.optim.AdamW(
        rest, lr=table.lr, betas=table.betas, eps=table.eps, weight_decay=table.weight_decay, **kernel(rest, offload)
    )  # fmt: skip
    parts: list[tuple[torch.optim.Optimizer, float]] = [(adamw, 1.0)]
    if hidden:
        muon = Muon(hidden, lr=table.lr * table.muon, weight_decay=table.weight_decay, momentum=MUON_MOMENTUM)
        parts.append((muon, table.muon))
    return Optimizers(parts, everything, table.clip_norm, offload)


def kernel(parameters: Sequence[torch.nn.Parameter], offload: bool) -> dict[str, bool]:
    """How AdamW computes its step, for ``torch.optim.AdamW``; empty leaves it to torch."""
    if any(is_sharded(p) for p in parameters):
        return {"foreach": True}  # torch itself takes sharded ones one by one
    plain = all(p.device.type == "cpu" and p.is_floating_point() for p in parameters)
    return {"fused": True} if plain and not offload and sum(p.numel() for p in parameters) >= FUSED else {}


def tensors(state: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors of a parameter's state, but for single numbers (a count of steps, which torch keeps on the CPU)."""
    return [value for value in state.values() if isinstance(value, torch.Tensor) and value.ndim]


def stream(optimizer: torch.optim.Optimizer, size: int = STREAMED) -> None:
    """Step over all parameters, about ``size`` bytes of them at a time; their state lies in the host's memory before and after.

    What Muon computes as one batch stays one batch, so that nothing rounds otherwise.
    """
    wholes = [group["params"] for group in optimizer.param_groups]
    try:
        for number, whole in enumerate(wholes):
            for group in optimizer.param_groups:
                group["params"] = []
            for chunk in chunked(whole, size, isinstance(optimizer, Muon)):
                optimizer.param_groups[number]["params"] = chunk
                move_state(optimizer, chunk, None)
                optimizer.step()
                move_state(optimizer, chunk, torch.device("cpu"))
    finally:
        for group, whole in zip(optimizer.param_groups, wholes, strict=True):
            group["params"] = whole


def chunked(parameters: Sequence[torch.nn.Parameter], size: int, alike: bool = False) -> list[list[torch.nn.Parameter]]:
    """The parameters in runs of at least ``size`` bytes; with ``alike`` all of one shape are in one run."""
    units: dict[Any, list[torch.nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        units[parameter.shape if alike else parameter].append(parameter)
    chunks: list[list[torch.nn.Parameter]] = [[]]
    for unit in units.values():
        if sum(p.nbytes for p in chunks[-1]) >= size:
            chunks.append([])
        chunks[-1] += unit
    return chunks


@torch.no_grad()
def move_state(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], device: torch.device | None
) -> None:
    """Move the state of ``parameters`` to ``device`` (None: to where each parameter lies); a no-op for what is there."""
    left: list[torch.Tensor] = []
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        for name, value in state.items():
            goal = device or parameter.device
            if not isinstance(value, torch.Tensor) or not value.ndim or value.device.type == goal.type:
                continue
            left.append(value)
            state[name] = to_host(value) if goal.type == "cpu" else to_device(value, goal)
    synchronise(left)


def learning_rate(table: OptimizerTable, step: int, total: int) -> float:
    """Rate of step ``step`` (from 0) of ``total``: linear warm-up, then constant, or falling to ``final_lr`` of it."""
    warm = min(1.0, (step + 1) / table.warmup_steps) if table.warmup_steps else 1.0
    return table.lr * warm * SCHEDULES[table.schedule](min(1.0, step / max(1, total)), table.final_lr)


SCHEDULES = {
    "constant": lambda done, final: 1.0,
    "linear": lambda done, final: max(final, 1.0 - done),
    "cosine": lambda done, final: final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done)),
}
