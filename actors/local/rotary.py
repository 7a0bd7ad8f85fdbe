"""Rotary positions (RoFormer, arXiv 2104.09864), as products of complex numbers.

The Hugging Face models turn coordinate ``i`` of a head together with ``i + D/2``. Here each such pair lies side by side, in queries and keys
alike, which no product of the two can see; so a turn is one pass over memory. ``paired`` brings weights into that order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from broker.errors import EngineError


def paired(weight: Tensor, head_dim: int) -> Tensor:
    """``weight``, whose first dimension is that of heads times ``head_dim``, with the two coordinates of each pair side by side."""
    halves = weight.view(-1, 2, head_dim // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def turn(x: Tensor, by: Tensor) -> None:
    """Turn the pairs of ``x [..., D]`` in place by the complex numbers ``by [..., D/2]``."""
    if x.dtype == torch.float32:
        torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(by)
    else:  # there are no complex numbers of half precision
        x.copy_(torch.view_as_real(torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * by).flatten(-2))


def rotary(config: Any, head_dim: int, length: int) -> Tensor:
    """Complex numbers ``[length, head_dim / 2]`` of the config's rotary parameters."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = getattr(config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        theta = parameters.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0
        frequencies, factor = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim), 1.0
    elif kind in ("linear", "llama3", "yarn"):
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    else:
        raise EngineError(f"the local engine has no rotary scaling {kind!r}; use engine = 'sglang'")
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return torch.complex(angles.cos() * factor, angles.sin() * factor)
