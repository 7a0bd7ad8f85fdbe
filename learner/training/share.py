"""One rank's part of a step: its chunks, and what belongs to the whole batch, as tensors or as bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor

from learner.training.batch import PackedChunk
from learner.training.deal import PADDING, deal

PADDED = 2  # number of tokens of a padding chunk


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of a step. ``M`` trained tokens of a chunk lie at its ``places`` among the ``total`` of all ranks'.

    ``batch``: tensors of the whole batch, the same for all ranks. ``marks``: of each chunk bool [M], where they are needed.
    ``parts``: of each chunk the minibatch that it belongs to; all ranks have equally many chunks of each.
    """

    chunks: tuple[PackedChunk, ...]
    places: tuple[slice, ...]
    total: int
    batch: Mapping[str, Tensor] = field(default_factory=dict)
    marks: tuple[Tensor, ...] = ()
    parts: tuple[int, ...] = ()

    @classmethod
    def whole(
        cls,
        chunks: Sequence[PackedChunk],
        batch: Mapping[str, Tensor] | None = None,
        marks: Sequence[Tensor] = (),
        parts: Sequence[int] | None = None,
    ) -> Share:
        """All of a step, in one minibatch if ``parts`` does not say otherwise."""
        ends = np.cumsum([0, *(int(chunk.mask_T.sum()) for chunk in chunks)]).tolist()
        places = tuple(slice(a, b) for a, b in pairwise(ends))
        given = tuple(0 for _ in chunks) if parts is None else tuple(parts)
        return cls(tuple(chunks), places, ends[-1], dict(batch or {}), tuple(marks), given)

    def dealt(self, world: int) -> list[Share]:
        """The shares of ``world`` ranks."""
        hands: list[list[int]] = [[] for _ in range(world)]
        parts: list[int] = []
        for part in sorted(set(self.parts)):
            numbers = [i for i, own in enumerate(self.parts) if own == part]
            dealt = deal([len(self.chunks[i].tokens_T) for i in numbers], world)
            parts += [part] * len(dealt[0])
            for hand, more in zip(hands, dealt, strict=True):
                hand += [PADDING if i == PADDING else numbers[i] for i in more]
        return [self._of(hand, parts) for hand in hands]

    def _of(self, hand: Sequence[int], parts: Sequence[int]) -> Share:
        nothing = torch.zeros(0, dtype=torch.bool)
        return replace(
            self,
            parts=tuple(parts),
            chunks=tuple(padding() if i == PADDING else self.chunks[i] for i in hand),
            places=tuple(slice(0, 0) if i == PADDING else self.places[i] for i in hand),
            marks=tuple(nothing if i == PADDING else self.marks[i] for i in hand) if self.marks else (),
        )

    def to(self, device: torch.device | str) -> Share:
        return replace(
            self,
            chunks=tuple(_moved(chunk, device) for chunk in self.chunks),
            batch={name: tensor.to(device) for name, tensor in self.batch.items()},
            marks=tuple(mark.to(device) for mark in self.marks),
        )


def padding() -> PackedChunk:
    """A chunk without trained tokens: its loss is 0, and so are its gradients."""
    none, nowhere = torch.zeros(PADDED, dtype=torch.bool), torch.zeros(PADDED, dtype=torch.long)
    return PackedChunk(
        tokens_T=nowhere,
        positions_T=torch.arange(PADDED),
        lengths_N=(PADDED,),
        target_T=nowhere,
        mask_T=none,
        sequence_T=nowhere,
        behavior_T=torch.zeros(PADDED),
        version_T=nowhere,
        rows_N=(0,),
        prefixes_N=((0, 0),),
    )


def _moved(chunk: PackedChunk, device: torch.device | str) -> PackedChunk:
    return PackedChunk(**{f.name: _there(getattr(chunk, f.name), device) for f in fields(chunk)})


def _there(value: Any, device: torch.device | str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def to_bytes(share: Share) -> bytes:
    """``share`` (on the CPU) as msgpack; tensors are raw little-endian bytes."""
    return bytes(
        msgpack.packb(
            {
                "chunks": [{f.name: _packed(getattr(chunk, f.name)) for f in fields(chunk)} for chunk in share.chunks],
                "places": [[place.start, place.stop] for place in share.places],
                "total": share.total,
                "batch": {name: _packed(tensor) for name, tensor in share.batch.items()},
                "marks": [_packed(mark) for mark in share.marks],
                "parts": list(share.parts),
            }
        )
    )


def from_bytes(data: bytes) -> Share:
    """The inverse of ``to_bytes``."""
    raw = msgpack.unpackb(data)
    return Share(
        tuple(PackedChunk(**{name: _unpacked(value) for name, value in chunk.items()}) for chunk in raw["chunks"]),
        tuple(slice(*place) for place in raw["places"]),
        raw["total"],
        {name: _unpacked(value) for name, value in raw["batch"].items()},
        tuple(_unpacked(mark) for mark in raw["marks"]),
        tuple(raw["parts"]),
    )


def _packed(value: Any) -> Any:
    if isinstance(value, Tensor):
        array = value.contiguous().numpy()
        return {"dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        array = np.frombuffer(value["data"], np.dtype(value["dtype"])).reshape(value["shape"])
        return torch.from_numpy(array.copy())
    return tuple(_unpacked(item) for item in value) if isinstance(value, list) else value
