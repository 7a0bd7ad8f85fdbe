"""Muon in the gradients' own precision: torch's orthogonalises in bfloat16, ten times slower on a CPU without such units.

K. Jordan et al., "Muon", 2024: the momentum of each matrix is replaced by the nearest orthogonal one, found by five
Newton-Schulz iterations. Matrices of one shape are computed as one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from learner.training.shards import as_sharded, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; the rate is scaled by ``sqrt(max(1, rows / columns))``. 2-D parameters only."""

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                directions = [whole(self._direction(p, group["momentum"])) for p in parameters]
                update = orthogonalise(torch.stack(directions))
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, change in zip(parameters, update, strict=True):
                    change = as_sharded(change, parameter)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-rate)

    def _direction(self, parameter: torch.nn.Parameter, momentum: float) -> Tensor:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        return grad.lerp(buffer, momentum)


def orthogonalise(matrices_BRC: Tensor) -> Tensor:
    """Singular values of each matrix moved to about 1 (between .7 and 1.2), ``[B, R, C] -> [B, R, C]``."""
    a, b, c = COEFFICIENTS
    tall = matrices_BRC.shape[1] > matrices_BRC.shape[2]
    x = matrices_BRC.transpose(1, 2) if tall else matrices_BRC
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x
