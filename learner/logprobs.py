"""Log-probabilities of chosen tokens without ever keeping the logits.

The head runs on trained positions only, in row chunks, and again in the backward pass: memory is one chunk of logits
instead of all. Log-sum-exp in float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from broker.errors import EngineError
from learner.attention import plan_segments
from learner.batch import PackedChunk, TokenScores

SCORE = "packed_scores"  # of a sharded model: the method that brings its weights together first
SMALL = 1 << 22  # logits of this many elements are one chunk whatever the vocabulary


class _TokenLogprobs(torch.autograd.Function):
    """``hidden_MD``, ``weight_VD``, ``target_M`` -> log-probability, entropy and argmax hit of each row.

    ``scale_M`` multiplies the logits. The products are computed in ``kind``, all else in float32 (float64 if that is given).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, scale_M: Tensor, rows: int, kind: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, weight = hidden_MD.shape[0], weight_VD.to(kind)
        logprobs, entropy = (hidden_MD.new_empty(count, dtype=exact(kind)) for _ in range(2))
        correct = torch.empty(count, dtype=torch.bool, device=hidden_MD.device)
        for at in range(0, count, rows):
            part = slice(at, at + rows)
            logits = (hidden_MD[part].to(kind) @ weight.T).to(exact(kind)) * scale_M[part, None]
            norm = torch.logsumexp(logits, -1)
            logprobs[part] = logits.gather(1, target_M[part, None])[:, 0] - norm
            correct[part] = logits.argmax(-1) == target_M[part]
            each = logits.sub_(norm[:, None])
            probability = each.exp()
            entropy[part] = -(probability * torch.where(probability > 0, each, 0.0)).sum(-1)
        ctx.save_for_backward(hidden_MD, weight_VD, target_M, scale_M)
        ctx.rows, ctx.kind = rows, kind
        ctx.mark_non_differentiable(correct)
        ctx.set_materialize_grads(False)
        return logprobs, entropy, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor, None, None, None, None]:
        hidden_MD, weight_VD, target_M, scale_M = ctx.saved_tensors
        zeros_M = torch.zeros_like(scale_M)
        slope_M, spread_M = (zeros_M if grad is None else grad * scale_M for grad in grads[:2])
        weight = weight_VD.to(ctx.kind)
        grad_hidden = torch.zeros_like(hidden_MD)
        grad_weight = torch.zeros_like(weight_VD, dtype=exact(ctx.kind))
        # rows that the loss leaves out are left out here too: it costs nothing, and what is not finite in them stays there
        for part in ((slope_M != 0) | (spread_M != 0)).nonzero()[:, 0].split(ctx.rows):
            hidden = hidden_MD[part].to(ctx.kind)
            logits = (hidden @ weight.T).to(exact(ctx.kind)) * scale_M[part, None]
            slope = torch.softmax(logits, -1).neg_()
            flatter = _entropy_slope(logits, slope, spread_M[part]) if grads[1] is not None else None
            slope.scatter_add_(1, target_M[part, None], torch.ones_like(slope[:, :1]))
            slope = slope.mul_(slope_M[part, None])
            slope = (slope if flatter is None else slope.add_(flatter)).to(ctx.kind)
            grad_hidden[part] = (slope @ weight).to(grad_hidden.dtype)
            grad_weight += slope.T @ hidden
        return grad_hidden, grad_weight.to(weight_VD.dtype), None, None, None, None


def _entropy_slope(logits: Tensor, minus_p: Tensor, spread_M: Tensor) -> Tensor:
    """``dH/dlogits = -p (log p + H)`` of each row times ``spread_M``; ``minus_p`` is ``-softmax(logits)``. ``[m, V]``."""
    log_p = torch.log_softmax(logits, -1)
    weighted = torch.where(minus_p < 0, minus_p * log_p, 0.0)
    entropy = weighted.sum(-1, keepdim=True)
    return (weighted + minus_p * entropy).mul_(spread_M[:, None])


def exact(kind: torch.dtype) -> torch.dtype:
    """The type that sums over the vocabulary are taken in."""
    return torch.promote_types(kind, torch.float32)


def token_logprobs(
    hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, temperature: float | Tensor = 1.0, rows: int = 256
) -> TokenScores:
    """Scores of ``target_M`` under ``softmax(hidden @ weight^T / temperature)``; entropy in nats at that temperature.

    Log-probabilities and entropy are differentiable.

    ``temperature``: one, or one a row ``[M]``. Under autocast the products are in its type, forward and backward.
    """
    device = hidden_MD.device.type
    mixed = torch.is_autocast_enabled(device)
    kind = torch.get_autocast_dtype(device) if mixed else torch.promote_types(hidden_MD.dtype, weight_VD.dtype)
    scale = 1.0 / torch.as_tensor(temperature, dtype=exact(kind), device=hidden_MD.device)
    rows = max(rows, SMALL // weight_VD.shape[0])
    with torch.autocast(device, enabled=False):
        logprobs, entropy, correct = _TokenLogprobs.apply(
            hidden_MD, weight_VD, target_M, scale.expand(len(target_M)), rows, kind
        )
    return TokenScores(logprobs, entropy, correct)


def score(model: Any, chunk: PackedChunk, *, temperature: float | Tensor = 1.0, rows: int = 256) -> TokenScores:
    """Scores of the trained positions of a packed chunk, with gradients to the model where they are enabled.

    ``temperature``: one, or one a trained position ``[M]``. Raises EngineError if the model's head has a bias.
    """
    return getattr(model, SCORE, partial(scores_of, model))(chunk, temperature, rows)


def scores_of(model: Any, chunk: PackedChunk, temperature: float | Tensor, rows: int) -> TokenScores:
    """``score`` of a model whose weights are here."""
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise EngineError("packed training does not know output heads with a bias")
    hidden_TD = model.base_model(
        input_ids=chunk.tokens_T[None],
        position_ids=chunk.positions_T[None],
        attention_mask=None,
        use_cache=False,
        segments=plan_segments(chunk.lengths_N, chunk.tokens_T.device, chunk.prefixes_N),
    ).last_hidden_state[0]
    return token_logprobs(hidden_TD[chunk.mask_T], head.weight, chunk.target_T[chunk.mask_T], temperature, rows)
