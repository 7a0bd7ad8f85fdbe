"""The learner's record of the base version of a sparse push (``broker.weights.sparse``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from broker.control.server import Member
from broker.weights.sink import Push
from broker.weights.worker import PublisherProcess

WORTH = 0.5  # largest sparse push, as a share of the full size: finding and applying changes costs time too


@dataclass(frozen=True, slots=True)
class Base:
    """The version acknowledged last, the snapshot buffer that holds it, and the identities of the members that have it."""

    version: int
    buffer: int
    holders: frozenset[bytes]

    def held_by(self, members: Sequence[Member]) -> bool:
        """Whether there are ``members``, and all of them hold this version and can apply changes to it."""
        return bool(members) and all(m.identity in self.holders and m.status.get("sparse") for m in members)

    def changes(self, process: PublisherProcess, push: Push, buffer: int, size: int) -> Push:
        """``push`` as changes since this version, or unchanged if they are more than ``WORTH * size`` bytes. Raises WeightPushError.

        ``buffer`` holds the new snapshot, ``size`` is its size in bytes.
        """
        found = process.order("compare", buffer=buffer, base=self.buffer, size=size, most=int(WORTH * size))
        return replace(push, base=self.version, sparse=int(found["bytes"])) if found["bytes"] else push
