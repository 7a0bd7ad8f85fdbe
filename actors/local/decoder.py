"""The forward pass of a Llama-like decoder on a static key-value cache: Llama, Qwen2, Qwen3.

Fused projections, grouped queries as rows, no framework in the inner loop. Covers RMSNorm, rotary positions (default and
those that transformers can compute beforehand), grouped-query attention, optional biases and query/key norms, SwiGLU, tied or
untied heads. Sliding windows, experts and dynamic rotary scaling are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from actors.local.attending import Attention
from actors.local.cache import Cache, heads_first
from actors.local.layers import Fusing, Layer, placed, taken
from actors.local.rotary import rotary, turn
from broker.errors import EngineError

MAX_ROWS = 65536
SUPPORTED = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


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
        self._attention = Attention(self.heads, self.kv_heads, self.head_dim, dtype, device)
        self.layers: list[Layer] = []
        self._outs: list[Tensor] = []  # what stands behind the attention of one token, a layer
        self.embedding = self.final_norm = self.head = torch.empty(0, dtype=dtype, device=device)

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
        """Take these weights (Hugging Face names): they are copied, into the room of those before. Raises EngineError if one is missing or of
        another shape; those before are whole then."""
        fusing = Fusing(
            self.heads, self.kv_heads, self.head_dim, self.hidden, self.config.intermediate_size, self.dtype, self.device
        )  # fmt: skip
        found = [fusing.read(tensors, i) for i in range(self.depth)]
        vocabulary, place = (self.vocabulary, self.hidden), (self.dtype, self.device)
        embedding = taken(tensors, "model.embed_tokens.weight", vocabulary)
        final_norm = taken(tensors, "model.norm.weight", (self.hidden,))
        untied = "lm_head.weight" in tensors and not self.config.tie_word_embeddings
        head = taken(tensors, "lm_head.weight", vocabulary) if untied else None
        before: Sequence[Layer | None] = self.layers or [None] * self.depth
        self.layers = [fusing.layer(parts, into) for parts, into in zip(found, before, strict=True)]
        self._outs = [self._attention.projection(layer.out) for layer in self.layers]
        self.embedding = placed(embedding, self.embedding, *place)
        self.final_norm = placed(final_norm, self.final_norm, *place)
        own = self.head if self.head is not self.embedding else None
        self.head = self.embedding if head is None else placed(head, own, *place)

    def move(self, device: str) -> None:
        """Hold the weights on ``device``; they are computed with on ``self.device`` only."""
        tied = self.head is self.embedding
        for layer in self.layers:
            for field in fields(layer):
                tensor = getattr(layer, field.name)
                if tensor is not None:
                    setattr(layer, field.name, tensor.to(device))
        self._outs = [self._attention.projection(layer.out) for layer in self.layers]
        self.embedding, self.final_norm = self.embedding.to(device), self.final_norm.to(device)
        self.head = self.embedding if tied else self.head.to(device)

    def prefill(self, tokens_BT: Tensor, lengths_B: Tensor, cache: Cache) -> Tensor:
        """Fill rows ``0..B`` of ``cache`` from their tokens (padded on the right); logits ``[B, V]`` behind the last token of each."""
        rows, length = tokens_BT.shape
        turns = self._turns[:length, None]
        hidden = self.embedding[tokens_BT]
        grouped = self.heads != self.kv_heads
        for layer, known in zip(self.layers, cache.layers, strict=True):
            query, new = self._project(layer, hidden, turns)
            known[:rows, :length] = new
            key, value = heads_first(new, self.kv_heads)
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
        mask = torch.where(self._numbers[: cache.length] <= positions[:, :, None], self._zero, self._never)[:, None]
        turns = self._turns[positions.clamp(max=self.context - 1)][:, :, None]  # more is padding
        hidden = self.embedding[tokens_BT]
        grouped = self.heads != self.kv_heads
        for layer, known in zip(self.layers, cache.layers, strict=True):
            query, new = self._project(layer, hidden, turns)
            known[which[:, None], positions] = new
            key, value = heads_first(known[:rows], self.kv_heads)
            out = F.scaled_dot_product_attention(
                query.transpose(1, 2), key, value, attn_mask=mask, enable_gqa=grouped
            )  # fmt: skip
            hidden = self._finish(layer, hidden, out.transpose(1, 2).reshape(rows, length, -1))
        return self._logits(hidden[which, lengths_B - 1])

    def decode(self, tokens_B: Tensor, positions_B: Tensor, longest: int, cache: Cache) -> Tensor:
        """One token each for rows ``0..B``: written to the cache at its position; logits ``[B, V]`` behind it.

        ``longest`` is at least the largest position + 1. What does not depend on the layer is computed once: rotations, mask, rows.
        """
        rows, queries = tokens_B.shape[0], self.heads
        which = self._numbers[:rows]
        mask = torch.where(self._numbers[:longest] <= positions_B[:, None], self._zero, self._never)
        turns = self._turns[positions_B][:, None]
        hidden = self.embedding[tokens_B]
        for layer, out, known in zip(self.layers, self._outs, cache.layers, strict=True):
            qkv = self._linear(self._normed(hidden), layer.qkv, layer.qkv_bias)
            qkv = qkv.view(rows, queries + 2 * self.kv_heads, self.head_dim)
            turned = qkv[:, : queries + self.kv_heads]
            if layer.norms is not None:
                torch.mul(self._normed(turned), layer.norms, out=turned)
            turn(turned, turns)
            known[which, positions_B] = qkv[:, queries:]
            hidden = torch.addmm(hidden, self._attention(qkv[:, :queries], known[:rows, :longest], mask), out)
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

    def _project(self, layer: Layer, hidden: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        """Queries ``[B, T, heads, D]``, and keys and values as the cache has them ``[B, T, 2 KV, D]``."""
        qkv = F.linear(self._normed(hidden), layer.qkv.t(), layer.qkv_bias)
        qkv = qkv.unflatten(-1, (self.heads + 2 * self.kv_heads, self.head_dim))
        turned = qkv[:, :, : self.heads + self.kv_heads]
        if layer.norms is not None:
            turned.copy_(F.rms_norm(turned, (self.head_dim,), None, self.eps) * layer.norms)
        turn(turned, turns)
        return qkv[:, :, : self.heads], qkv[:, :, self.heads :]

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
