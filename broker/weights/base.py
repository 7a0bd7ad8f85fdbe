"""The version that changes are counted from (``broker.weights.sparse``), as the learner's side knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from broker.control.server import Member
from broker.weights.sink import Push
from broker.weights.worker import PublisherProcess

WORTH = 0.5  # of the whole is the most that changes may take: they have to be found, and made at the other end


@dataclass(frozen=True, slots=True)
class Base:
    """The version that was acknowledged last, the buffer that it lies in, and the members that hold it, by their identities."""

    version: int
    buffer: int
    holders: frozenset[bytes]

    def held_by(self, members: Sequence[Member]) -> bool:
        """Whether all of ``members`` hold it and can make changes in it."""
        return bool(members) and all(m.identity in self.holders and m.status.get("sparse") for m in members)

    def changes(self, process: PublisherProcess, push: Push, buffer: int, size: int) -> Push:
        """``push`` as changes since this version, where they are worth it. Raises WeightPushError."""
        found = process.order("compare", buffer=buffer, base=self.buffer, size=size, most=int(WORTH * size))
        return replace(push, base=self.version, sparse=int(found["bytes"])) if found["bytes"] else push
