"""Keeps track of rewarders that report an outage: deadlines do not run for the groups that they have to judge."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from broker.messages import Outage

log = logging.getLogger("learner")
BELIEVED_SECONDS = (
    30.0  # an outage counts as over if it is not reported again within this time (three times the usual interval)
)
OLD_SECONDS = 60.0  # a record older than this is history, which a restart reads once more


@dataclass(slots=True)
class _Spoken:
    """The outage that one worker reported, from ``begun`` to ``until`` (seconds since the epoch, by the learner's clock)."""

    begun: float
    until: float
    away: bool
    error: str


class Outages:
    """The latest report of each worker of each rewarder. ``tell`` is called with a rewarder and the time since which it has been out, or 0 when
    it is back."""

    def __init__(self, tell: Callable[[str, float], None] = lambda rewarder, since: None) -> None:
        self._tell = tell
        self._spoken: dict[tuple[str, str], _Spoken] = {}

    def take(self, message: Outage, now: float) -> None:
        """Take in a record received at ``now``. The beginning and the end of an outage are logged."""
        if now - message.created > OLD_SECONDS:
            return
        key = (message.rewarder, message.worker)
        known = self._spoken.get(key)
        lasting = known is not None and known.away and now <= known.until
        if message.away:
            begun = known.begun if lasting and known else now
            self._spoken[key] = _Spoken(begun, now + BELIEVED_SECONDS, True, message.error)
            if not lasting:
                log.warning(
                    "rewarder %s (%s) is out of order and holds %d samples; the deadlines of its groups do not run meanwhile: %s",
                    *key, message.held, message.error,
                )  # fmt: skip
                self._tell_of(message.rewarder, now)
        elif lasting and known is not None:
            self._spoken[key] = _Spoken(known.begun, now, False, "")
            log.info("rewarder %s (%s) is back after %.0f s", *key, now - known.begun)
            self._tell_of(message.rewarder, now)

    def look(self, now: float) -> None:
        """Log the workers that have gone silent during an outage. They have ended, and their groups' deadlines run again."""
        for key, known in self._spoken.items():
            if known.away and now > known.until:
                known.away = False
                log.warning("rewarder %s (%s) was out of order and says nothing any longer", *key)
                self._tell_of(key[0], now)

    def _tell_of(self, rewarder: str, now: float) -> None:
        begun, _ = self.lasting(now).get(rewarder, (0.0, ""))
        self._tell(rewarder, begun)

    def over(self, mix: Iterable[str], now: float) -> float:
        """When the last outage of any rewarder of ``mix`` was over; ``now`` while one lasts, 0 if there was none."""
        names = set(mix)
        return min(now, max((known.until for (name, _), known in self._spoken.items() if name in names), default=0.0))

    def lasting(self, now: float) -> dict[str, tuple[float, str]]:
        """The rewarders that are out, each with when this began and with its last error."""
        found: dict[str, tuple[float, str]] = {}
        for (name, _), known in self._spoken.items():
            if known.away and now <= known.until:
                found[name] = min(found.get(name, (known.begun, known.error)), (known.begun, known.error))
        return found
