"""The weight road's near end, as the learner uses it."""

from __future__ import annotations

from typing import Protocol


class Road(Protocol):
    """Carries policies to those who sample from them."""

    @property
    def published(self) -> int:
        """The newest version that receivers can have."""

    def publish(self, version: int) -> None:
        """Hand the policy over as ``version``; returns at once."""

    def open(self) -> None:
        """The state holds a model now: whatever needs its shape may be made."""

    def close(self) -> None: ...

    def settled(self, seconds: float) -> bool:
        """Wait up to so many seconds for the push under way; whether it has ended."""
