"""Packs sequences into chunks: sorted by length, best fit, so that almost no token of a chunk is padding.

R1's layout (arXiv 2501.12948, supplement): the longest first, each into the fullest chunk that still takes it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from broker.messages import FloatArray, IntArray, Trajectory
from learner.batch import PackedChunk


@dataclass(frozen=True, slots=True)
class Sequenced:
    """One sequence to train on: ``tokens`` [T], which of them are trained, their behaviour log-probabilities and versions.

    ``row`` is its place in the batch.
    """

    tokens: IntArray
    mask: np.ndarray
    logprobs: FloatArray
    versions: IntArray
    row: int

    @property
    def shared(self) -> int:
        """Number of leading tokens that other samples of the prompt may share: all before the one that predicts the first
        trained token."""
        return max(0, int(self.mask.argmax()) - 1)

    @classmethod
    def of(cls, trajectory: Trajectory, row: int) -> Sequenced:
        return cls(trajectory.tokens, trajectory.mask(), trajectory.logprobs, trajectory.versions_per_token(), row)

    @classmethod
    def supervised(cls, tokens: IntArray, mask: np.ndarray, row: int) -> Sequenced:
        """A sequence that nobody sampled."""
        return cls(tokens, mask, np.zeros(len(tokens), np.float32), np.full(len(tokens), -1, np.int32), row)


def assign(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Best-fit decreasing: which sequences go into each chunk of ``size`` tokens. What is longer gets a chunk of its own."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), ascending
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(room, (lengths[i], -1))
        if at == len(room):
            bins.append([i])
            insort(room, (size - lengths[i], len(bins) - 1))
        else:
            free, number = room.pop(at)
            bins[number].append(i)
            insort(room, (free - lengths[i], number))
    return bins


def pack(sequences: Sequence[Sequenced], size: int, device: str = "cpu") -> list[PackedChunk]:
    """The chunks of these sequences, ``size`` tokens each at most. Deterministic in the order of ``sequences``."""
    bins = assign([len(s.tokens) for s in sequences], size)
    return [_chunk([sequences[i] for i in members], device) for members in bins]


def packing_efficiency(chunks: Sequence[PackedChunk], size: int) -> float:
    """Share of the chunks' room that holds tokens, those that a shared prefix stands for included."""
    whole = [len(c.tokens_T) + sum(length for _, length in c.prefixes_N) for c in chunks]
    return sum(whole) / sum(max(size, count) for count in whole) if chunks else 1.0


def _chunk(members: Sequence[Sequenced], device: str) -> PackedChunk:
    """Position t predicts token t + 1 of its own sequence, so what belongs to that token moves one place forward.

    The first sequence with a prompt lays it down whole, the others of the chunk begin behind it.
    """
    laid: dict[bytes, int] = {}
    prefixes: list[tuple[int, int]] = []
    at = 0
    for s in members:
        prompt = s.tokens[: s.shared].tobytes()
        prefixes.append((laid[prompt], s.shared) if s.shared and prompt in laid else (0, 0))
        laid.setdefault(prompt, at)
        at += len(s.tokens) - prefixes[-1][1]
    lengths = tuple(len(s.tokens) - cut for s, (_, cut) in zip(members, prefixes, strict=True))

    def joined(parts: list[np.ndarray], kind: torch.dtype) -> torch.Tensor:
        own = [part[cut:] for part, (_, cut) in zip(parts, prefixes, strict=True)]
        return torch.from_numpy(np.concatenate(own)).to(device, kind)

    def forward(values: np.ndarray, last: object) -> np.ndarray:
        return np.append(values[1:], np.asarray([last], dtype=values.dtype))

    return PackedChunk(
        tokens_T=joined([s.tokens for s in members], torch.long),
        positions_T=joined([np.arange(len(s.tokens)) for s in members], torch.long),
        lengths_N=lengths,
        prefixes_N=tuple(prefixes),
        target_T=joined([forward(s.tokens, 0) for s in members], torch.long),
        mask_T=joined([forward(s.mask, False) for s in members], torch.bool),
        sequence_T=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device),
        behavior_T=joined([forward(s.logprobs, 0.0) for s in members], torch.float32),
        version_T=joined([forward(s.versions, -1) for s in members], torch.long),
        rows_N=tuple(s.row for s in members),
    )
