"""The forward pass of a Llama-like decoder on a static key-value cache: Llama, Qwen2, Qwen3.

Fused projections, grouped queries as rows, no framework in the inner loop. Covers RMSNorm, rotary positions (default and
those that transformers can compute beforehand), grouped-query attention, optional biases and query/key norms, SwiGLU, tied or
untied heads. Sliding windows, experts and dynamic rotary scaling are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from actors.local.cache import Cache
from actors.local.rotary import paired, rotary, turn
from broker.errors import EngineError

MAX_ROWS = 65536
TURNED = frozenset(("q_proj", "k_proj", "q_norm", "k_norm"))
SUPPORTED = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


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


class Decoder:
    """A model's shape and its current weights."""

    def __init__(self, config: Any, dtype: torch.dtype, device: str, context: int) -> None:
        name = (config.architectures or ["?"])[0]
        if name not in SUPPORTED:
            raise EngineError(
                f"the local engine cannot run {name}; it runs {', '.join(SUPPORTED)}. Use engine = 'sglang'"
            )
        if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []):
            raise EngineError("the local engine has no sliding-window attention; use engine = 'sglang'")
        self.config, self.dtype, self.device = config, dtype, device
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.depth, self.eps, self.hidden = config.num_hidden_layers, config.rms_norm_eps, config.hidden_size
        self.vocabulary = int(config.vocab_size)
        self.context = min(context, int(config.max_position_embeddings))
        self._turns = rotary(config, self.head_dim, self.context).to(device)
        self._numbers = torch.arange(max(self.context, MAX_ROWS), device=device)
        self._eps = torch.tensor(self.eps, device=device)
        self._shares = {n: torch.full((n,), 1 / n, device=device) for n in (self.hidden, self.head_dim)}
        self._zero, self._never = (torch.tensor(x, dtype=dtype, device=device) for x in (0.0, float("-inf")))
        self.layers: list[Layer] = []

    def cache(self, rows: int, length: int) -> Cache:
        """Room for keys and values of ``rows`` sequences of up to ``length`` tokens."""
        return Cache(
            rows, length, kv_heads=self.kv_heads, head_dim=self.head_dim, depth=self.depth, dtype=self.dtype, device=self.device
        )  # fmt: skip

    def other_shape(self, tensors: Mapping[str, Tensor]) -> Any:
        """The configuration of these weights, where they are of another size than the model's; None where they fit. Heads stay as wide as
        they are. Raises EngineError for weights that are of no size of this family."""
        found = sizes(tensors, self.head_dim)
        own = {name: getattr(self.config, name) for name in found}
        if found == own:
            return None
        if found["vocab_size"] < self.vocabulary or found["num_attention_heads"] % max(1, found["num_key_value_heads"]):
            raise EngineError(f"the weights are of another model: {found}, and this engine runs {own}")
        config = copy.deepcopy(self.config)
        head, embedding = tensors.get("lm_head.weight"), tensors["model.embed_tokens.weight"]
        tied = head is None or torch.equal(head, embedding)
        layers = ["full_attention"] * found["num_hidden_layers"]
        config.update({**found, "layer_types": layers, "tie_word_embeddings": tied})
        return config

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take these weights (Hugging Face names); they are copied. Raises EngineError if one is missing."""

        def take(name: str) -> Tensor:
            if name not in tensors:
                raise EngineError(f"the weights lack {name!r}")
            found = tensors[name].detach().to(self.device, self.dtype)
            return paired(found, self.head_dim) if name.split(".")[-2] in TURNED else found

        def maybe(name: str) -> Tensor | None:
            return take(name).clone() if name in tensors else None

        def matrix(*names: str, norm: str = "") -> Tensor:
            parts = [take(name) for name in names]
            whole = torch.empty((parts[0].shape[1], sum(len(p) for p in parts)), dtype=self.dtype, device=self.device)
            scale, at = take(norm).float()[:, None] if norm else None, 0
            for part in parts:
                whole[:, at : at + len(part)] = part.t() if scale is None else part.t() * scale
                at += len(part)
            return whole

        layers = []
        for i in range(self.depth):
            at, attn = f"model.layers.{i}.", f"model.layers.{i}.self_attn."
            biased = f"{attn}q_proj.bias" in tensors
            query_norm, key_norm = maybe(f"{attn}q_norm.weight"), maybe(f"{attn}k_norm.weight")
            layers.append(
                Layer(
                    qkv=matrix(*(f"{attn}{x}_proj.weight" for x in "qkv"), norm=f"{at}input_layernorm.weight"),
                    qkv_bias=torch.cat([take(f"{attn}{x}_proj.bias") for x in "qkv"]) if biased else None,
                    out=matrix(f"{attn}o_proj.weight"),
                    norms=None if query_norm is None or key_norm is None else torch.cat(
                        (query_norm.expand(self.heads, -1), key_norm.expand(self.kv_heads, -1))
                    ),
                    gate_up=matrix(
                        f"{at}mlp.gate_proj.weight", f"{at}mlp.up_proj.weight", norm=f"{at}post_attention_layernorm.weight"
                    ),
                    down=matrix(f"{at}mlp.down_proj.weight"),
                )
            )  # fmt: skip
        self.embedding = take("model.embed_tokens.weight").clone()
        self.final_norm = take("model.norm.weight").clone()
        untied = "lm_head.weight" in tensors and not self.config.tie_word_embeddings
        self.head = take("lm_head.weight").clone() if untied else self.embedding
        self.layers = layers

    def move(self, device: str) -> None:
        """Hold the weights on ``device``; they are computed with on ``self.device`` only."""
        tied = self.head is self.embedding
        for layer in self.layers:
            for field in fields(layer):
                tensor = getattr(layer, field.name)
                if tensor is not None:
                    setattr(layer, field.name, tensor.to(device))
        self.embedding, self.final_norm = self.embedding.to(device), self.final_norm.to(device)
        self.head = self.embedding if tied else self.head.to(device)

    def prefill(self, tokens_BT: Tensor, lengths_B: Tensor, cache: Cache) -> Tensor:
        """Fill rows ``0..B`` of ``cache`` from their tokens (padded on the right); logits ``[B, V]`` behind the last token of each."""
        rows, length = tokens_BT.shape
        turns = self._turns[:length, None]
        hidden = self.embedding[tokens_BT]
        for i, layer in enumerate(self.layers):
            query, key, value = self._project(layer, hidden, turns)
            key, value = key.transpose(1, 2), value.transpose(1, 2)
            cache.keys[i][:rows, :, :length] = key
            cache.values[i][:rows, :, :length] = value
            grouped = self.heads != self.kv_heads
            out = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, is_causal=True, enable_gqa=grouped)
            hidden = self._finish(layer, hidden, out.transpose(1, 2).reshape(rows, length, -1))
        last = hidden[torch.arange(rows, device=hidden.device), lengths_B - 1]
        return self._logits(last)

    def extend(self, tokens_BT: Tensor, starts_B: Tensor, lengths_B: Tensor, cache: Cache) -> Tensor:
        """Go on behind the first ``starts`` tokens of rows ``0..B``, which ``cache`` holds, with ``lengths`` tokens each (padded on the right);
        logits ``[B, V]`` behind the last of each. ``cache`` has room for every start with every padded token behind it.
        """
        rows, length = tokens_BT.shape
        which = self._numbers[:rows]
        positions = starts_B[:, None] + self._numbers[:length]
        longest = cache.keys[0].shape[2]
        mask = torch.where(self._numbers[:longest] <= positions[:, :, None], self._zero, self._never)[:, None]
        turns = self._turns[positions.clamp(max=self.context - 1)][:, :, None]  # more is padding
        hidden = self.embedding[tokens_BT]
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            query, key, value = self._project(layer, hidden, turns)
            keys[which[:, None], :, positions] = key
            values[which[:, None], :, positions] = value
            grouped = self.heads != self.kv_heads
            out = F.scaled_dot_product_attention(
                query.transpose(1, 2), keys[:rows], values[:rows], attn_mask=mask, enable_gqa=grouped
            )
            hidden = self._finish(layer, hidden, out.transpose(1, 2).reshape(rows, length, -1))
        return self._logits(hidden[which, lengths_B - 1])

    def decode(self, tokens_B: Tensor, positions_B: Tensor, longest: int, cache: Cache) -> Tensor:
        """One token each for rows ``0..B``: written to the cache at its position; logits ``[B, V]`` behind it.

        ``longest`` is at least the largest position + 1. What does not depend on the layer is computed once: rotations, mask, rows.
        """
        rows, groups, queries = tokens_B.shape[0], self.heads // self.kv_heads, self.heads
        where = self._numbers[:rows, None], self._numbers[: 2 * self.kv_heads], positions_B[:, None]
        mask = torch.where(self._numbers[:longest] <= positions_B[:, None], self._zero, self._never)[:, None, None]
        turns = self._turns[positions_B][:, None]
        hidden = self.embedding[tokens_B]
        for layer, both in zip(self.layers, cache.both, strict=True):
            qkv = self._linear(self._normed(hidden), layer.qkv, layer.qkv_bias)
            qkv = qkv.view(rows, queries + 2 * self.kv_heads, self.head_dim)
            turned = qkv[:, : queries + self.kv_heads]
            if layer.norms is not None:
                torch.mul(self._normed(turned), layer.norms, out=turned)
            turn(turned, turns)
            both[where] = qkv[:, queries:]
            query = qkv[:, :queries].view(rows, self.kv_heads, groups, self.head_dim)
            key, value = both[:rows, :, :longest].chunk(2, 1)
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            hidden = torch.addmm(hidden, out.reshape(rows, -1), layer.out)
            gate, up = torch.mm(self._normed(hidden), layer.gate_up).chunk(2, -1)
            hidden = torch.addmm(hidden, F.silu(gate).mul_(up), layer.down)
        return self._logits(hidden)

    def _normed(self, x: Tensor) -> Tensor:
        """``x`` over the root of its mean square in the last dimension: few small products, where ``rms_norm`` makes many passes."""
        if x.dtype != torch.float32:
            return F.rms_norm(x, x.shape[-1:], None, self.eps)
        size = x.shape[-1]
        squares = (x * x).reshape(-1, size)
        means = torch.addmv(self._eps, squares, self._shares[size])
        return x * means.rsqrt_().view(*x.shape[:-1], 1)

    @staticmethod
    def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)

    def _project(self, layer: Layer, hidden: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = F.linear(self._normed(hidden), layer.qkv.t(), layer.qkv_bias)
        qkv = qkv.unflatten(-1, (self.heads + 2 * self.kv_heads, self.head_dim))
        turned = qkv[:, :, : self.heads + self.kv_heads]
        if layer.norms is not None:
            turned.copy_(F.rms_norm(turned, (self.head_dim,), None, self.eps) * layer.norms)
        turn(turned, turns)
        query, key, value = qkv.split((self.heads, self.kv_heads, self.kv_heads), 2)
        return query, key, value

    def _finish(self, layer: Layer, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + F.linear(attended, layer.out.t())
        gate, up = F.linear(self._normed(hidden), layer.gate_up.t()).chunk(2, -1)
        return hidden + F.linear(F.silu(gate) * up, layer.down.t())

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(self._normed(hidden) * self.final_norm, self.head).float()


def sizes(tensors: Mapping[str, Tensor], head_dim: int) -> dict[str, int]:
    """The sizes of a model whose heads are ``head_dim`` wide, as its configuration names them. Raises EngineError if weights are missing."""
    first = "model.layers.0."

    def rows(name: str) -> int:
        if name not in tensors:
            raise EngineError(f"the weights lack {name!r}")
        return len(tensors[name])

    layers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    return {
        "vocab_size": rows("model.embed_tokens.weight"), "hidden_size": rows("model.norm.weight"), "num_hidden_layers": len(layers),
        "intermediate_size": rows(f"{first}mlp.gate_proj.weight"),
        "num_attention_heads": rows(f"{first}self_attn.q_proj.weight") // head_dim,
        "num_key_value_heads": rows(f"{first}self_attn.k_proj.weight") // head_dim,
    }  # fmt: skip
