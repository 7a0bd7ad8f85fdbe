"""Messages from rank 0 to all other ranks, and one part for each: msgpack over gloo; nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import torch
import torch.distributed as dist
from torch import Tensor


class Channel:
    """One end of the channel of ``group`` (gloo). All ranks make the same calls in the same order."""

    def __init__(self, group: Any) -> None:
        self._group, self.rank, self.world = group, dist.get_rank(group), dist.get_world_size(group)

    def tell(self, message: Any) -> None:
        """Rank 0: send ``message`` (of msgpack's types) to all other ranks."""
        data = _tensor(msgpack.packb(message, default=str))
        dist.broadcast(torch.tensor([len(data)]), 0, self._group)
        dist.broadcast(data, 0, self._group)

    def hear(self) -> Any:
        """Other ranks: wait for the next message."""
        size = torch.zeros(1, dtype=torch.long)
        dist.broadcast(size, 0, self._group)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, 0, self._group)
        return msgpack.unpackb(data.numpy().data, strict_map_key=False)

    def give(self, parts: Sequence[bytes]) -> None:
        """Rank 0: send ``parts[i]`` to rank ``i + 1``; no part may be empty."""
        data = [_tensor(part) for part in parts]
        dist.broadcast(torch.tensor([len(part) for part in data]), 0, self._group)
        sent = [dist.isend(part, rank, self._group) for rank, part in enumerate(data, 1)]
        for work in sent:
            if work is not None:
                work.wait()

    def take(self) -> bytes:
        """Other ranks: wait for the part from ``give``."""
        sizes = torch.zeros(self.world - 1, dtype=torch.long)
        dist.broadcast(sizes, 0, self._group)
        data = torch.empty(int(sizes[self.rank - 1]), dtype=torch.uint8)
        dist.recv(data, 0, self._group)
        return data.numpy().tobytes()

    def worst(self, status: int) -> int:
        """The largest ``status`` of all ranks; waits until every rank has called it."""
        found = torch.tensor([status])
        dist.all_reduce(found, dist.ReduceOp.MAX, self._group)
        return int(found)


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
