"""A layer's weights as the decoder computes with them, brought there from a checkpoint's names; newer ones go into the place of those before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.local.rotary import paired
from broker.errors import EngineError

TURNED = frozenset(("q_proj", "k_proj", "q_norm", "k_norm"))


@dataclass(slots=True)
class Layer:
    """One layer's weights, fused; matrices are ``[in, out]``, as a product with few rows likes them. The weights of the norms before ``qkv``
    and ``gate_up`` are multiplied into these; ``norms`` are those of queries and keys, a row a head. Queries and keys are in pairs
    (``actors/local/rotary.py``)."""

    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    norms: Tensor | None
    gate_up: Tensor
    down: Tensor


def taken(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of a checkpoint. Raises EngineError if it is missing, or of another shape."""
    if name not in tensors:
        raise EngineError(f"the weights lack {name!r}")
    if tuple(tensors[name].shape) != shape:
        raise EngineError(f"{name!r} is {tuple(tensors[name].shape)} where this model has {shape}")
    return tensors[name].detach()


def placed(tensor: Tensor, into: Tensor | None, dtype: torch.dtype, device: str) -> Tensor:
    """A copy of ``tensor``, in the room of ``into`` where that is of its shape."""
    if into is None or into.shape != tensor.shape:
        return tensor.to(device, dtype, copy=True)
    return into.copy_(tensor)


@dataclass(frozen=True)
class Fusing:
    """Makes layers of a model of this shape."""

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    dtype: torch.dtype
    device: str

    def read(self, tensors: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """What ``tensors`` have of a layer, by the names in it. Raises EngineError if it is not whole."""
        at = f"model.layers.{number}."
        shapes = self._shapes()
        optional = {name: shape for name, shape in self._optional().items() if at + name in tensors}
        return {name: taken(tensors, at + name, shape) for name, shape in (shapes | optional).items()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "input_layernorm.weight": (self.hidden,), "post_attention_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (queries, self.hidden), "self_attn.k_proj.weight": (keys, self.hidden),
            "self_attn.v_proj.weight": (keys, self.hidden), "self_attn.o_proj.weight": (self.hidden, queries),
            "mlp.gate_proj.weight": (self.inner, self.hidden), "mlp.up_proj.weight": (self.inner, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.inner),
        }  # fmt: skip

    def _optional(self) -> dict[str, tuple[int, ...]]:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj.bias": (queries,), "self_attn.k_proj.bias": (keys,), "self_attn.v_proj.bias": (keys,),
            "self_attn.q_norm.weight": (self.head_dim,), "self_attn.k_norm.weight": (self.head_dim,),
        }  # fmt: skip

    def layer(self, found: Mapping[str, Tensor], into: Layer | None) -> Layer:
        """The layer of what ``read`` found, in the room of ``into``."""
        attn = "self_attn."
        return Layer(
            qkv=self._matrix(
                [self._part(found, f"{attn}{x}_proj.weight") for x in "qkv"],
                found["input_layernorm.weight"],
                into.qkv if into else None,
            ),
            qkv_bias=torch.cat([self._part(found, f"{attn}{x}_proj.bias") for x in "qkv"])
            if f"{attn}q_proj.bias" in found
            else None,
            out=self._matrix([self._part(found, f"{attn}o_proj.weight")], None, into.out if into else None),
            norms=self._norms(found),
            gate_up=self._matrix(
                [self._part(found, f"mlp.{x}_proj.weight") for x in ("gate", "up")],
                found["post_attention_layernorm.weight"],
                into.gate_up if into else None,
            ),
            down=self._matrix([self._part(found, "mlp.down_proj.weight")], None, into.down if into else None),
        )

    def _part(self, found: Mapping[str, Tensor], name: str) -> Tensor:
        part = found[name].to(self.device, self.dtype)
        return paired(part, self.head_dim) if name.split(".")[1] in TURNED else part

    def _norms(self, found: Mapping[str, Tensor]) -> Tensor | None:
        names = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
        if not all(name in found for name in names):
            return None
        query, key = (self._part(found, name) for name in names)
        return torch.cat((query.expand(self.heads, -1), key.expand(self.kv_heads, -1)))

    def _matrix(self, parts: list[Tensor], norm: Tensor | None, into: Tensor | None) -> Tensor:
        """``parts [out, in]`` side by side as ``[in, out]``, the rows times ``norm``."""
        shape = parts[0].shape[1], sum(len(p) for p in parts)
        whole = torch.empty(shape, dtype=self.dtype, device=self.device) if into is None else into
        scale, at = None if norm is None else norm.to(self.device).float()[:, None], 0
        for part in parts:
            room = whole[:, at : at + len(part)]
            if scale is None:
                room.copy_(part.t())
            elif self.dtype == torch.float32:
                torch.mul(part.t(), scale, out=room)
            else:
                room.copy_(part.t() * scale)  # multiplied in float32, and rounded once
            at += len(part)
        return whole
