"""Log-probabilities of chosen tokens without ever keeping the logits.

The head runs on trained positions only, in row chunks, and again in the backward pass: memory is one chunk of logits
instead of all. Log-sum-exp in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learner.attention import plan_segments
from learner.batch import PackedChunk, TokenScores

SMALL = 1 << 22  # logits of this many elements are one chunk whatever the vocabulary


class _TokenLogprobs(torch.autograd.Function):
    """``hidden_MD``, ``weight_VD``, ``target_M`` -> log-probability, entropy and argmax hit of each row."""

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, scale: float, rows: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = hidden_MD.shape[0]
        logprobs, entropy = (torch.empty(count, dtype=torch.float32, device=hidden_MD.device) for _ in range(2))
        correct = torch.empty(count, dtype=torch.bool, device=hidden_MD.device)
        for at in range(0, count, rows):
            part = slice(at, at + rows)
            logits = (hidden_MD[part] @ weight_VD.T).float() * scale
            norm = torch.logsumexp(logits, -1)
            chosen = logits.gather(1, target_M[part, None])[:, 0]
            logprobs[part] = chosen - norm
            correct[part] = logits.argmax(-1) == target_M[part]
            each = logits - norm[:, None]
            probability = each.exp()
            entropy[part] = -(probability * torch.where(probability > 0, each, 0.0)).sum(-1)
        ctx.save_for_backward(hidden_MD, weight_VD, target_M)
        ctx.scale, ctx.rows = scale, rows
        ctx.mark_non_differentiable(entropy, correct)
        return logprobs, entropy, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_MD, weight_VD, target_M = ctx.saved_tensors
        grad_hidden, grad_weight = torch.empty_like(hidden_MD), torch.zeros_like(weight_VD)
        for at in range(0, hidden_MD.shape[0], ctx.rows):
            part = slice(at, at + ctx.rows)
            logits = (hidden_MD[part] @ weight_VD.T).float() * ctx.scale
            slope = torch.softmax(logits, -1).neg_()
            slope.scatter_add_(1, target_M[part, None], torch.ones_like(slope[:, :1]))
            slope = (slope * (grads[0][part, None] * ctx.scale)).to(hidden_MD.dtype)
            grad_hidden[part] = slope @ weight_VD
            grad_weight += slope.T @ hidden_MD[part]
        return grad_hidden, grad_weight, None, None, None


def token_logprobs(
    hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, temperature: float = 1.0, rows: int = 256
) -> TokenScores:
    """Scores of ``target_M`` under ``softmax(hidden @ weight^T / temperature)``; entropy in nats at that temperature."""
    rows = max(rows, SMALL // weight_VD.shape[0])
    logprobs, entropy, correct = _TokenLogprobs.apply(hidden_MD, weight_VD, target_M, 1.0 / temperature, rows)
    return TokenScores(logprobs, entropy, correct)


def score(model: Any, chunk: PackedChunk, *, temperature: float = 1.0, rows: int = 256) -> TokenScores:
    """Scores of the trained positions of a packed chunk, with gradients to the model where they are enabled."""
    device = chunk.tokens_T.device
    hidden_TD = model.base_model(
        input_ids=chunk.tokens_T[None],
        position_ids=chunk.positions_T[None],
        attention_mask=None,
        use_cache=False,
        segments=plan_segments(chunk.lengths_N, device),
    ).last_hidden_state[0]
    head = model.get_output_embeddings()
    return token_logprobs(hidden_TD[chunk.mask_T], head.weight, chunk.target_T[chunk.mask_T], temperature, rows)
