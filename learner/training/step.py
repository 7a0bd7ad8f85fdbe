"""One rank's part of a step: the log-probabilities of other policies, the loss of each chunk, and the update."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learner.losses.table import objective_of
from learner.losses.tally import Tally
from learner.losses.tokens import TokenBatch, TokenLoss, kept_tokens, token_losses
from learner.tables import Training
from learner.training.batch import PackedChunk, TokenScores
from learner.training.logprobs import score
from learner.training.memory import Activations
from learner.training.prepared import Batch
from learner.training.reference import refresh, scored_by
from learner.training.share import Share

if TYPE_CHECKING:
    from learner.training.trainer import TrainState


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a step over all ranks; ``forward_backward`` is in seconds, ``memory`` in bytes, of this rank."""

    tally: Tally
    loss: float
    grad_norm: float
    updates_skipped: float
    forward_backward: float
    memory: dict[str, float]


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk, and what is known of its ``M`` trained tokens before it is scored: the row of each one's sample, and other policies'
    log-probabilities where the objective reads them. ``place``: where its tokens lie among those of all ranks."""

    chunk: PackedChunk
    row_M: Tensor
    place: slice
    reference_M: Tensor | None = None
    prox_M: Tensor | None = None

    @classmethod
    def of(cls, chunk: PackedChunk, place: slice, reference_M: Tensor | None, prox_M: Tensor | None) -> Piece:
        return cls(chunk, _rows(chunk), place, reference_M, prox_M)


class Step:
    """What ``take_share`` works with. Made once a step; a batch of several ``minibatches`` is updated several times."""

    def __init__(self, state: TrainState, share: Share, table: Training) -> None:
        self._started = time.monotonic()
        self._state, self._share, self._table = state, share, table
        self._objective, self._batch = objective_of(table.objective), Batch(**share.batch)
        if self._objective.kl and state.reference is None:  # a replay may ask for a divergence that the run did without
            state.keep_reference()
        self._tally, self._loss = Tally(), 0.0
        self._grad_norms: list[float] = []
        self._updating = 0.0  # seconds
        self.activations = Activations(state.model, state.residence.device)

    # -- other policies ------------------------------------------------------------------------------------------------

    def pieces(self) -> list[Piece]:
        """The chunks with what the reference policy says of them, and the policy before the batch. The reference is asked first: it and the
        policy then need not be on the device at once."""
        reference = self._references()
        self._state.residence.model_to_device()
        prox = self._proximal()
        share = self._share
        return [Piece.of(*known) for known in zip(share.chunks, share.places, reference, prox, strict=True)]

    def _references(self) -> list[Tensor | None]:
        state, chunks = self._state, self._share.chunks
        if not self._objective.kl:
            return [None] * len(chunks)
        if isinstance(state.reference, torch.nn.Module):
            state.residence.reference_to_device()
        else:  # it is made of the policy
            state.residence.model_to_device()
        with torch.no_grad(), scored_by(state.reference) as model:
            found: list[Tensor | None] = [self._scored(model, c, _rows(c)).logprobs_M for c in chunks]
        if self._table.offload == "all":
            state.residence.reference_to_host()
        return found

    def _proximal(self) -> list[Tensor | None]:
        """Where a batch is one update, the policy before it is the one that is differentiated, and need not be scored apart."""
        if self._table.minibatches == 1 or not self._objective.uses_prox:
            return [None] * len(self._share.chunks)
        with torch.no_grad():
            return [self._scored(self._state.model, c, _rows(c)).logprobs_M for c in self._share.chunks]

    # -- the loss ------------------------------------------------------------------------------------------------------

    def minibatches(self, pieces: list[Piece]) -> Iterator[list[tuple[Piece, Tensor | None]]]:
        """For each update its pieces, and which of their tokens take part where that depends on the whole minibatch."""
        for number in range(self._table.minibatches):
            own = [piece for piece, part in zip(pieces, self._share.parts, strict=True) if part == number]
            yield list(zip(own, self._kept(own), strict=True))

    def rounds(self, minibatch: list[tuple[Piece, Tensor | None]]) -> Iterator[tuple[Piece, Tensor | None]]:
        """The same one by one; each is to be followed by its backward pass."""
        chunks = [piece.chunk for piece, _ in minibatch]
        for _, item in zip(self._state.placement.rounds(self._state.model, chunks), minibatch, strict=True):
            yield item

    def score(self, piece: Piece) -> TokenScores:
        return self._scored(self._state.model, piece.chunk, piece.row_M)

    def token_losses(self, piece: Piece, kept_M: Tensor | None, scores: TokenScores) -> TokenLoss:
        chunk = piece.chunk
        return token_losses(
            self._objective,
            TokenBatch(
                logprobs=scores.logprobs_M,
                behavior=chunk.behavior_T[chunk.mask_T],
                advantages=self._advantages(piece),
                mask=torch.ones_like(piece.row_M, dtype=torch.bool),
                sequence=piece.row_M,
                prox=piece.prox_M,
                reference=piece.reference_M,
                teacher=self._teacher(piece),
                entropy=scores.entropy_M,
                kept=kept_M,
            ),
        )

    def total(self, piece: Piece, tokens: TokenLoss) -> Tensor:
        """The chunk's part of the loss."""
        return (tokens.loss * self._batch.weights_N[piece.row_M]).sum()

    def count(self, piece: Piece, scores: TokenScores, tokens: TokenLoss, loss: Tensor) -> None:
        """Take the chunk into what the step reports."""
        staleness = self._state.step - piece.chunk.version_T[piece.chunk.mask_T]
        self._tally.add(tokens, piece.row_M, staleness, scores.entropy_M.detach())
        self._loss += float(loss.detach())

    # -- the update ----------------------------------------------------------------------------------------------------

    def update(self, rate: float) -> None:
        """Clip, and move the weights, together with the other ranks."""
        started = time.monotonic()
        self._state.optimizers.set_lr(rate)
        self._grad_norms.append(self._state.optimizers.step())
        self._updating += time.monotonic() - started

    def finish(self) -> Done:
        """The policy is one version newer."""
        state = self._state
        sums, self._tally.maxima = state.placement.totals({"loss": self._loss, **self._tally.sums}, self._tally.maxima)
        loss, self._tally.sums = sums.pop("loss") / self._table.minibatches, sums
        seconds = time.monotonic() - self._started - self._updating
        if state.reference is not None and (state.stage_step + 1) % self._objective.ref_refresh == 0:
            refresh(state.reference, state.model)
        if self._table.offload == "all":
            state.residence.model_to_host()
        state.step, state.stage_step = state.step + 1, state.stage_step + 1
        skipped = fmean(not math.isfinite(norm) for norm in self._grad_norms)
        memory = self.activations.metrics(state.optimizers)
        return Done(self._tally, loss, fmean(self._grad_norms), skipped, seconds, memory)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _scored(self, model: Any, chunk: PackedChunk, row_M: Tensor) -> TokenScores:
        """What ``model`` makes of the chunk's trained tokens, each at the temperature it was sampled at."""
        with torch.autocast(chunk.tokens_T.device.type, torch.bfloat16, enabled=self._table.dtype == "bfloat16"):
            return score(model, chunk, temperature=self._batch.temperatures_N[row_M], rows=self._table.logprob_rows)

    def _advantages(self, piece: Piece) -> Tensor:
        chunk, advantages_M = piece.chunk, self._batch.advantages_N[piece.row_M]
        return advantages_M if chunk.value_T is None else advantages_M + chunk.value_T[chunk.mask_T]

    def _teacher(self, piece: Piece) -> Tensor | None:
        """The teacher's log-probabilities; NaN where there are none: such a token is left out, and counted."""
        if not self._objective.distill:
            return None
        chunk = piece.chunk
        if chunk.teacher_T is None:
            return torch.full_like(chunk.behavior_T[chunk.mask_T], math.nan)
        return chunk.teacher_T[chunk.mask_T]

    def _kept(self, pieces: list[Piece]) -> list[Tensor | None]:
        """Which tokens of each chunk take part, for an objective whose mask depends on the whole batch; this costs a forward pass."""
        if not self._objective.second_moment or not pieces:
            return [None] * len(pieces)
        everybodys = torch.zeros(4, self._share.total, device=pieces[0].row_M.device)
        for piece in pieces:
            with torch.no_grad():
                logprobs_M = self.score(piece).logprobs_M
            behavior_M = piece.chunk.behavior_T[piece.chunk.mask_T]
            everybodys[:, piece.place] = torch.stack(
                (logprobs_M, behavior_M, self._advantages(piece), torch.ones_like(logprobs_M))
            )
        logprobs, behavior, advantages, present = self._state.placement.added(everybodys)
        kept = kept_tokens(self._objective, logprobs, behavior, advantages, present > 0)
        return [kept[piece.place] for piece in pieces]


def _rows(chunk: PackedChunk) -> Tensor:
    """For each trained token of the chunk the row of its sample."""
    return torch.tensor(chunk.rows_N, device=chunk.tokens_T.device)[chunk.sequence_T[chunk.mask_T]]
