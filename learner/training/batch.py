"""The tensors that travel from packing to loss: one packed chunk of sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """Sequences laid end to end. ``T`` tokens in all, ``N`` sequences.

    Samples of one prompt share it: ``prefixes_N`` gives (start, length) of the place in the chunk that holds the first tokens of a
    sequence, length 0 where it holds them itself. ``lengths_N`` is the number of each sequence's own tokens, in order.
    ``tokens_T`` int64, ``positions_T`` int64 (from 0 in each whole sequence).
    ``target_T`` int64: the token that position t predicts; ``mask_T`` bool: whether that prediction is trained (never at the
    last token of a sequence). ``sequence_T`` int64: index in ``[0, N)`` of the sequence that the position belongs to.
    ``behavior_T`` float32: behaviour log-probability of ``target_T`` (zero where not trained, and in supervised training);
    ``version_T`` int64: policy version that sampled ``target_T`` (-1 where none did). ``rows_N``: which rows of the batch
    the sequences are. ``value_T`` float32: what is added to the sequence's advantage at that token, from values of steps; ``teacher_T``
    float32: a teacher's log-probability of ``target_T``, NaN where it has none. None where no sequence of the chunk has any.
    """

    tokens_T: torch.Tensor
    positions_T: torch.Tensor
    lengths_N: tuple[int, ...]
    prefixes_N: tuple[tuple[int, int], ...]
    target_T: torch.Tensor
    mask_T: torch.Tensor
    sequence_T: torch.Tensor
    behavior_T: torch.Tensor
    version_T: torch.Tensor
    rows_N: tuple[int, ...]
    value_T: torch.Tensor | None = None
    teacher_T: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of the ``M`` trained positions of a chunk (``mask_T``), in order: ``logprobs_M`` and ``entropy_M`` float32, both
    differentiable, and ``correct_M`` bool (the target was the most likely token)."""

    logprobs_M: torch.Tensor
    entropy_M: torch.Tensor
    correct_M: torch.Tensor
