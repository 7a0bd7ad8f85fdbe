"""What shadows say of the groups that are judged now: means to compare with, never to be trained on."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

from broker.messages import Vote

REMEMBERED = (
    1024  # number of ended groups to remember: a shadow may be slower than the rewarders that everybody waits for
)


class Shadows:
    """Collects the values of shadow votes between two manifests; votes on older groups, as of a backfill, are left aside."""

    def __init__(self) -> None:
        self._ended: dict[str, None] = {}
        self._values: dict[str, list[float]] = defaultdict(list)

    def ended(self, group_id: str) -> None:
        self._ended[group_id] = None
        if len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def take(self, vote: Vote, outstanding: bool) -> None:
        if vote.value is not None and (outstanding or vote.group_id in self._ended):
            self._values[vote.rewarder].append(vote.value)

    def drain(self) -> dict[str, float]:
        """``shadow/NAME``: the mean of each shadow since this was asked last."""
        found = {f"shadow/{name}": fmean(values) for name, values in self._values.items()}
        self._values.clear()
        return found
