"""How many samples an actor keeps in flight: a fixed number, or by the pressure on its engine (``actors.slots``)."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace

from actors.config import ActorsTable
from actors.engine import Engine
from actors.slots import Slots, follow
from monitoring.metrics import ActorMetrics

log = logging.getLogger("actor")
LOOK_SECONDS = 1.0  # between two looks at the engine


@dataclass(slots=True)
class Pace:
    """Always the same. ``ahead`` samples are held ready beyond what the engine has room for; ``finished`` counts replies that have come."""

    ahead: int
    finished: int = 0

    def follow(self, in_flight: int, group_size: int) -> None:
        """Called in every round: ``in_flight`` samples are with the engine, and the next prompt asks for ``group_size``."""


@dataclass(slots=True)
class AdaptivePace(Pace):
    """By the engine's pressure. What is held ready is part of the limit."""

    engine: Engine = field(kw_only=True)
    metrics: ActorMetrics = field(kw_only=True)
    slots: Slots = field(kw_only=True)
    _looked: float = field(default_factory=time.monotonic)

    def follow(self, in_flight: int, group_size: int) -> None:
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        seen, servers = self.engine.pressure(), max(1, len(self.engine.sinks))
        if self.engine.resting or self.engine.version < 0:
            return  # it says nothing of what it could do
        before = replace(self.slots, floor=min(group_size, self.slots.limit))
        self.slots = follow(before, seen, in_flight // servers, self.finished // servers)
        self.finished = 0
        if self.slots.limit != before.limit:
            log.info("%d slots after %d: %s", self.slots.limit, before.limit, seen)
            self.engine.hold(self.slots.limit)
            self.metrics.slots.set(self.slots.limit)


def pace_of(table: ActorsTable, engine: Engine, metrics: ActorMetrics) -> Pace:
    """The pace that the run file asks for."""
    metrics.slots.set(table.slots)
    if table.adaptive:
        return AdaptivePace(0, engine=engine, metrics=metrics, slots=Slots(table.slots))
    return Pace(int(table.queue * table.slots))
