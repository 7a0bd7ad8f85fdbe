"""What the local engine keeps of episodes between two turns: keys and values of all that was said, so that a later turn costs what is new."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from actors.engine import Request
from actors.local.cache import Cache
from actors.local.rows import Slot
from broker.messages import IntArray


@dataclass(frozen=True, slots=True)
class Kept:
    """``tokens`` int32 ``[n]``, and by layer their keys and values ``[n, 2 KV, D]``."""

    tokens: IntArray
    layers: tuple[Tensor, ...]

    def lay(self, cache: Cache, row: int) -> None:
        """Into the beginning of a row."""
        for mine, room in zip(self.layers, cache.layers, strict=True):
            room[row, : len(self.tokens)] = mine


class Held:
    """Up to ``room`` tokens of samples that may go on, those that ended last."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._used = 0
        self._kept: OrderedDict[tuple[str, int], Kept] = OrderedDict()

    def keep(self, slot: Slot, tokens: IntArray, cache: Cache, row: int) -> None:
        """Keep a sample that has ended in ``row``, of which ``tokens`` have entered the cache."""
        self._drop((slot.request.group_id, slot.index))
        if len(tokens) > self._room:
            return
        while self._used + len(tokens) > self._room:
            self._drop(next(iter(self._kept)))
        layers = tuple(layer[row, : len(tokens)].clone() for layer in cache.layers)
        self._kept[slot.request.group_id, slot.index] = Kept(tokens, layers)
        self._used += len(tokens)

    def take(self, request: Request) -> Kept | None:
        """What is kept of the beginning of this request, which is kept no longer."""
        found = self._drop((request.group_id, request.indices[0])) if len(request.indices) == 1 else None
        if found is None or len(found.tokens) >= len(request.tokens):
            return None
        return found if np.array_equal(found.tokens, request.tokens[: len(found.tokens)]) else None

    def forget(self, group_id: str) -> None:
        for name in [name for name in self._kept if name[0] == group_id]:
            self._drop(name)

    def clear(self) -> None:
        self._kept.clear()
        self._used = 0

    def _drop(self, name: tuple[str, int]) -> Kept | None:
        found = self._kept.pop(name, None)
        self._used -= 0 if found is None else len(found.tokens)
        return found
