"""Log-probabilities of chosen tokens without ever keeping the logits.

The head runs on trained positions only, in row chunks, and again in the backward pass: memory is one chunk of logits
instead of all. Logits and log-sum-exp are in float32, also where what is multiplied is in bfloat16: rounded to bfloat16 the logits
of a large vocabulary would be off by hundredths of a nat, more than a clip of 3e-4 over a sequence's mean can bear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from broker.errors import EngineError
from learner.model.attention import plan_segments
from learner.training.batch import PackedChunk, TokenScores

SCORE = "packed_scores"  # the method of a sharded model that first gathers its weights
SMALL = 1 << 22  # up to this many logits are one chunk whatever the vocabulary; if they are all there is, they are kept
LOWEST = -1e30  # replaces a logit that has overflowed to minus infinity: 0 times it is 0, not NaN
CACHED = (
    1 << 19
)  # logits that fit a processor's cache: on a CPU, everything but the matrix product works on blocks of this size


class _TokenLogprobs(torch.autograd.Function):
    """``hidden_MD``, ``weight_VD``, ``target_M`` -> log-probability, entropy and whether the target was the most likely, of each row.

    ``scale_M`` multiplies the logits. Products are of type ``kind``, all sums are in float32 (float64 if that is given).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, scale_M: Tensor, rows: int, kind: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, weight = hidden_MD.shape[0], weight_VD.to(kind)
        logprobs, entropy = (hidden_MD.new_empty(count, dtype=exact(kind)) for _ in range(2))
        correct = torch.empty(count, dtype=torch.bool, device=hidden_MD.device)
        products = weight.new_empty(min(rows, count), len(weight), dtype=exact(kind))
        multiply = _multiplier(weight, exact(kind))
        keep = products.numel() <= SMALL and count <= rows and kind == exact(kind)
        for at in range(0, count, rows):
            hidden = hidden_MD[at : at + rows].to(kind)
            product = multiply(hidden, products[: len(hidden)])
            for block in _blocks(product):
                here = slice(at + block.start, at + block.stop)
                logits = product[block].mul_(scale_M[here, None])
                chosen, top = logits.gather(1, target_M[here, None]), logits.amax(-1, keepdim=True)
                odds, total = _odds(logits, top)
                log_total = total.log()
                logprobs[here] = (chosen - top - log_total)[:, 0]
                correct[here] = (chosen == top)[:, 0]
                entropy[here] = log_total[:, 0] - torch.linalg.vecdot(odds, logits) / total[:, 0]
        ctx.save_for_backward(hidden_MD, weight_VD, target_M, scale_M, products if keep else None)
        ctx.rows, ctx.kind = rows, kind
        ctx.mark_non_differentiable(correct)
        ctx.set_materialize_grads(False)
        return logprobs, entropy, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden_MD, weight_VD, target_M, scale_M, kept_MV = ctx.saved_tensors
        zeros_M = torch.zeros_like(scale_M)
        slope_M, spread_M = (zeros_M if grad is None else grad * scale_M for grad in grads[:2])
        weight = weight_VD.to(ctx.kind)
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden_MD) if to_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=exact(ctx.kind)) if to_weight else None
        # rows that the loss leaves out are left out here too: it costs nothing, and what is not finite in them stays there
        heard = ((slope_M != 0) | (spread_M != 0)).nonzero()[:, 0]
        slopes = weight.new_empty(min(ctx.rows, len(heard)), len(weight))
        products = slopes if ctx.kind == exact(ctx.kind) else torch.empty_like(slopes, dtype=exact(ctx.kind))
        multiply = _multiplier(weight, exact(ctx.kind))
        for part in heard.split(ctx.rows):
            hidden = hidden_MD[part].to(ctx.kind)
            product, slope_of = products[: len(part)], slopes[: len(part)]
            if kept_MV is None:
                multiply(hidden, product)
            for block in _blocks(product):
                here = part[block]
                if kept_MV is None:
                    logits = product[block].mul_(scale_M[here, None])
                else:
                    logits = kept_MV[here]  # a copy, less each row's largest: what follows is the same
                slope, spread = slope_M[here, None], spread_M[here, None] if grads[1] is not None else None
                slope_of[block] = _logits_slope(logits, target_M[here, None], slope, spread)
            if grad_hidden is not None:
                grad_hidden[part] = (slope_of @ weight).to(grad_hidden.dtype)
            if grad_weight is not None and grad_weight.dtype == ctx.kind:
                grad_weight.addmm_(slope_of.T, hidden)
            elif grad_weight is not None:
                grad_weight += slope_of.T @ hidden
        return (
            grad_hidden,
            grad_weight if grad_weight is None else grad_weight.to(weight_VD.dtype),
            None,
            None,
            None,
            None,
        )


def _multiplier(weight_VD: Tensor, wide: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """``hidden [M, D], out [M, V]`` -> ``out``, the logits, summed and kept in type ``wide`` whatever the factors' type is."""
    if weight_VD.dtype == wide:
        return lambda hidden, out: torch.mm(hidden, weight_VD.T, out=out)
    if weight_VD.device.type == "cuda":
        return lambda hidden, out: torch.mm(hidden, weight_VD.T, wide, out=out)
    exact_VD = weight_VD.to(wide)  # processors have no such product; those of the rounded factors are the same numbers
    return lambda hidden, out: torch.mm(hidden.to(wide), exact_VD.T, out=out)


def _blocks(logits_MV: Tensor) -> Iterator[slice]:
    """The rows in turn, so many at once that a CPU's cache holds them; on other devices all of them."""
    count, size = logits_MV.shape
    step = max(1, CACHED // size if logits_MV.device.type == "cpu" else count)
    return (slice(at, min(at + step, count)) for at in range(0, count, step))


def _odds(logits_MV: Tensor, top_M1: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(logits - top)`` and its sums ``[M, 1]``; ``top`` is each row's largest. Leaves ``logits - top`` in ``logits``.

    What has overflowed to minus infinity becomes the lowest number: 0 times it is 0.
    """
    odds = logits_MV.sub_(top_M1).clamp_(min=LOWEST).exp()
    return odds, odds.sum(-1, keepdim=True)


def _logits_slope(logits_MV: Tensor, target_M1: Tensor, slope_M1: Tensor, spread_M1: Tensor | None) -> Tensor:
    """What ``slope * log p[target] + spread * H`` changes by with each of the logits: ``slope (1[target] - p) - spread p (log p + H)``.

    Overwrites ``logits``.
    """
    odds, total = _odds(logits_MV, logits_MV.amax(-1, keepdim=True))
    if spread_M1 is None:
        out = odds.mul_(-slope_M1 / total)
    else:
        # log p + H = logits - E[logits], whatever both are shifted by
        mean = torch.linalg.vecdot(odds, logits_MV)[:, None] / total
        out = logits_MV.sub_(mean).mul_(-spread_M1).sub_(slope_M1).mul_(odds.div_(total))
    return out.scatter_add_(1, target_M1, slope_M1)


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
