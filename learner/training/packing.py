"""Packs sequences into chunks: the longest first, so that little room is wasted, and the samples of a prompt together.

R1's layout (arXiv 2501.12948, supplement), with a prompt laid down once for all its samples in a chunk.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from broker.messages import FloatArray, IntArray, Trajectory
from learner.training.batch import PackedChunk

SPAN = 4  # attention copies a shared prompt for each of its samples: at most this many times the tokens of a chunk
SLACK = 1 / 32  # share of a chunk that may stay empty before a prompt is stored twice to fill it


@dataclass(frozen=True, slots=True)
class Sequenced:
    """One sequence to train on: ``tokens`` [T], which of them are trained, their behaviour log-probabilities and versions.

    ``row`` is its place in the batch. ``values`` [T]: what is added to its advantage at each token; ``teacher`` [T]: a teacher's
    log-probabilities, NaN where it has none.
    """

    tokens: IntArray
    mask: np.ndarray
    logprobs: FloatArray
    versions: IntArray
    row: int
    values: FloatArray | None = None
    teacher: FloatArray | None = None

    @property
    def shared(self) -> int:
        """Number of leading tokens that other samples of the prompt may share: all before the one that predicts the first
        trained token."""
        return max(0, int(self.mask.argmax()) - 1)

    @classmethod
    def of(
        cls, trajectory: Trajectory, row: int, values: FloatArray | None = None, teacher: FloatArray | None = None
    ) -> Sequenced:
        """``teacher``: of the trained tokens alone."""
        mask = trajectory.mask()
        if teacher is not None:
            given, teacher = teacher, np.full(len(mask), np.nan, np.float32)
            teacher[mask] = given
        return cls(trajectory.tokens, mask, trajectory.logprobs, trajectory.versions_per_token(), row, values, teacher)

    @classmethod
    def supervised(cls, tokens: IntArray, mask: np.ndarray, row: int) -> Sequenced:
        """A sequence that nobody sampled."""
        return cls(tokens, mask, np.zeros(len(tokens), np.float32), np.full(len(tokens), -1, np.int32), row)


@dataclass(slots=True)
class _Family:
    """The sequences of one prompt that are not in a chunk yet: (own tokens, -index), the longest last."""

    number: int
    shared: int
    left: list[tuple[int, int]]

    @property
    def rank(self) -> tuple[int, int]:
        """All that it needs of a chunk; of equals the first one is the highest."""
        return self.shared + sum(own for own, _ in self.left), -self.number

    def take(self, room: int, span: int) -> tuple[list[int], int]:
        """The longest that fit, one by one, into ``room`` tokens, prompts counted once, and ``span``, prompts counted each
        time; and the room that they need."""
        taken, needed = [], self.shared
        while (at := bisect_right(self.left, (min(room - needed, span - self.shared), 0)) - 1) >= 0:
            own, index = self.left.pop(at)
            taken.append(-index)
            needed += own
            span -= self.shared + own
        return taken, needed


def assign(lengths: Sequence[int], size: int, prompts: Sequence[tuple[Hashable, int]] | None = None) -> list[list[int]]:
    """Decides which sequences go into each chunk of ``size`` tokens. A longer sequence gets a chunk of its own.

    ``prompts``: what each begins with and how many tokens that are: counted once a chunk, so a prompt's sequences stay together
    where they can. The largest family that fits goes first; where none fits whole and much room is left, one is divided. In
    all its sequences, prompts counted each time, a chunk has no more than ``SPAN`` times ``size``.
    """
    families = _families(lengths, prompts or [(i, 0) for i in range(len(lengths))])
    waiting = sorted(family.rank for family in families)
    bins: list[list[int]] = []
    family: _Family | None
    begun: _Family | None = None
    while waiting:
        room, span, members = size, SPAN * size, []
        family, begun = begun or families[-waiting[-1][1]], None
        while family is not None:
            del waiting[bisect_left(waiting, family.rank)]
            taken, needed = family.take(room, span)
            if not taken:  # the first of a chunk, and too long for any
                taken, needed = [-family.left.pop()[1]], room
            members += taken
            room, span = room - needed, span - sum(lengths[i] for i in taken)
            if family.left:
                insort(waiting, family.rank)
                begun = family
            family = _next(families, waiting, room, span, size)
        bins.append(members)
    return bins


def _families(lengths: Sequence[int], prompts: Sequence[tuple[Hashable, int]]) -> list[_Family]:
    """In order of their first sequence. A prompt that only one has is its own."""
    found: dict[Hashable, _Family] = {}
    for i, (prompt, shared) in enumerate(prompts):
        family = found.setdefault(prompt if shared else (i, None), _Family(len(found), shared, []))
        insort(family.left, (lengths[i] - shared, -i))
    return list(found.values())


def _next(
    families: Sequence[_Family], waiting: Sequence[tuple[int, int]], room: int, span: int, size: int
) -> _Family | None:
    """The largest that fits whole; else, where much room is left, the one whose prompt costs least of those that fit in part."""

    def fits(family: _Family, of_it: int) -> bool:
        return family.shared + of_it <= min(room, span)

    at = bisect_right(waiting, (room, 1)) - 1
    if at >= 0 and fits(families[-waiting[at][1]], families[-waiting[at][1]].left[0][0]):
        return families[-waiting[at][1]]
    if room <= SLACK * size:
        return None
    parts = [families[-number] for _, number in waiting if fits(families[-number], families[-number].left[0][0])]
    return min(parts, key=lambda family: (family.shared, family.number), default=None)


def pack(sequences: Sequence[Sequenced], size: int, device: str = "cpu") -> list[PackedChunk]:
    """The chunks of these sequences, ``size`` tokens each at most. Deterministic in the order of ``sequences``."""
    prompts = [(s.tokens[: s.shared].tobytes(), s.shared) for s in sequences]
    bins = assign([len(s.tokens) for s in sequences], size, prompts)
    return [_chunk([sequences[i] for i in members], device) for members in bins]


def packing_efficiency(chunks: Sequence[PackedChunk], size: int) -> float:
    """Share of the chunks' room that is filled with tokens; a prompt shared by sequences of a chunk counts once."""
    held = [len(c.tokens_T) for c in chunks]
    return sum(held) / sum(max(size, count) for count in held) if chunks else 1.0


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

    def optional(parts: list[np.ndarray | None], missing: float) -> torch.Tensor | None:
        if all(part is None for part in parts):
            return None
        filled = [
            np.full(len(s.tokens), missing, np.float32) if part is None else part
            for part, s in zip(parts, members, strict=True)
        ]
        return joined([forward(part, missing) for part in filled], torch.float32)

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
        value_T=optional([s.values for s in members], 0.0),
        teacher_T=optional([s.teacher for s in members], float("nan")),
    )
