"""The learner's interface to the weight road."""

from __future__ import annotations

from typing import Protocol


class Road(Protocol):
    """Delivers policies to the engines that sample from them."""

    @property
    def published(self) -> int:
        """The newest version available to receivers."""

    def publish(self, version: int) -> None:
        """Take over the current policy as ``version``; returns without waiting for its delivery."""

    def open(self) -> None:
        """Called once the state holds a model, to set up whatever depends on its shape."""

    def close(self) -> None: ...

    def settled(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for the push under way; returns whether it has ended. Raises WeightPushError if it cannot."""

    def check(self) -> None:
        """Raises WeightPushError if nothing can be published any more: whoever waits for samples would wait for ever."""
