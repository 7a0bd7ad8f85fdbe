"""How many samples an actor keeps in flight, by the pressure that its engine is under: raised while there is room, lowered where samples
queue or are taken back. A pure state machine: ``follow`` makes the next state of a state and of what was seen.

Multiplicative decrease and cautious increase, as in V. Jacobson, "Congestion Avoidance and Control" (1988). What a change does is seen only
when samples that began under it have grown to their length, so changes are paced by samples that finish, not by the clock: one change a
generation of samples, whether these have 20 tokens or 20,000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

FIRST = 1.5
"""What a generation raises by before any pressure was met: from 64 to 1,000 in seven of them. Doubling, as TCP does, would overshoot a
cache that is full only when answers have grown by another half of it."""
STEP = 1.1  # what it raises by later, below what was too much
PROBE = 1.03
"""What it raises by close to what was too much: less than a lowering (``LOWER``) takes back, so that the mean stays close to the best."""
NEAR = 0.9  # of the limit that was too much: above this it is only probed
CALM = 3  # generations between two probes: answers may have become shorter, and nothing but trying tells
LOWER = 0.9
"""What remains after too many samples were taken back: enough for the cache to empty by the time that the samples in it have ended."""
LOST = 0.05
"""The share of a generation that may be taken back. Engines take back the youngest, which have little to compute anew, so a few of them cost
less than the room that would avoid them; between none and this share the limit stays."""
QUEUED = 0.25
"""The share of the running samples that may wait in the engine. A few must, or it idles when samples end; more than that only grow old there
(the weights that they begin with are newer than the prompt's, but their group is not fed to another actor)."""
PATIENCE = 2
"""Looks in a row at such a queue before it counts, and it may not be falling: a group that has just come queues for a moment, and so do all
samples whose cache is computed again with new weights."""
FALLS = 0.9  # a queue that is shorter than this share of what it was is falling
FULL = 0.95
"""The share of the key-value cache above which nothing is raised: samples in flight still grow, and the cache with them."""
BINDS = 0.9  # of the limit must be in flight to learn anything of it: else prompts are what is missing


@dataclass(frozen=True, slots=True)
class Pressure:
    """What an engine tells of itself. ``waiting`` samples are in flight and not begun; ``usage`` is the share of its key-value cache that is
    taken; ``retracted`` counts the samples that it ever had to take back for want of room; ``most`` is what it can run at once (0: unknown)."""

    waiting: int = 0
    usage: float = 0.0
    retracted: int = 0
    most: int = 0


@dataclass(frozen=True, slots=True)
class Slots:
    """``limit`` samples may be in flight, of at least ``floor``. ``met`` is the limit at which pressure was met last (0: it never was),
    ``finished`` how many samples have ended since the limit was changed, ``calm`` the generations without pressure since then,
    ``queues`` the looks in a row that saw a queue; ``waiting`` and ``retracted`` are the engine's at the last look."""

    limit: int
    floor: int = 1
    met: int = 0
    finished: int = 0
    calm: int = 0
    queues: int = 0
    waiting: int = 0
    retracted: int = 0
    lost: int = 0
    """Samples that were taken back since the limit was changed, or in this generation."""


def follow(slots: Slots, seen: Pressure, in_flight: int, finished: int) -> Slots:
    """The next state; ``finished`` samples have ended since the look before, and ``in_flight`` are under way."""
    running = max(0, in_flight - seen.waiting)
    stays = seen.waiting > max(1.0, QUEUED * running) and seen.waiting >= FALLS * slots.waiting
    queues = slots.queues + 1 if stays else 0
    lost = slots.lost + max(0, seen.retracted - slots.retracted)
    now = replace(
        slots, finished=slots.finished + finished, queues=queues, waiting=seen.waiting, retracted=seen.retracted, lost=lost
    )  # fmt: skip
    if in_flight > slots.limit:  # what was lowered before has not drained yet: it says nothing of the limit
        return replace(now, queues=0, lost=0)
    if lost > LOST * slots.limit:
        return _lower(now, int(slots.limit * LOWER))
    if queues >= PATIENCE:
        return _lower(now, math.ceil(running * (1 + QUEUED / 2)))
    if now.finished < slots.limit:
        return now
    now = replace(now, finished=0, calm=now.calm + 1, lost=0)
    if in_flight < BINDS * slots.limit or seen.usage > FULL or lost:
        return now
    return _raise(now, seen.most)


def _lower(slots: Slots, to: int) -> Slots:
    limit = max(slots.floor, min(to, slots.limit - 1))
    return replace(slots, limit=limit, met=slots.limit, finished=0, calm=0, queues=0, lost=0)


def _raise(slots: Slots, most: int) -> Slots:
    near = slots.met and slots.limit >= NEAR * slots.met
    if near and slots.calm < CALM:
        return slots
    by = FIRST if not slots.met else PROBE if near else STEP
    limit = max(slots.limit + 1, int(slots.limit * by))
    if most:
        limit = min(limit, max(slots.limit, int(most * (1 + QUEUED / 2))))
    if near and limit > slots.met:  # what was too much then is not now
        return replace(slots, limit=limit, met=limit, calm=0)
    return replace(slots, limit=limit, calm=0 if near else slots.calm)
