"""Every way in which a group can end, in one list: docs/fates.md has a line for each of them."""

from __future__ import annotations

from enum import StrEnum


class Fate(StrEnum):
    """What an audit counts a group as. Until it has one, a group is outstanding."""

    TRAINED = "trained"
    EVALUATED = "evaluated"
    COLLECTED = "collected"
    DROPPED = "dropped"
    DEAD_LETTERED = "dead_lettered"


class Reason(StrEnum):
    """Why a group ended without what it was asked for: the ``reason`` of a ``Dropped``, in a manifest or in a collection's record."""

    DEAD_LETTER = "dead_letter"
    INCOMPLETE = "incomplete"
    UNJUDGED = "unjudged"
    STALE = "stale"
    ZERO_VARIANCE = "zero_variance"
    STAGE_END = "stage_end"
    REJECTED = "rejected"
    """With what a rejecting stage has against its samples behind a colon."""
    EXPIRED = "expired"
    SET_ASIDE = "set_aside"
    """In no ``Dropped``: the group stood in a manifest that could not be executed."""

    @property
    def fate(self) -> Fate:
        return Fate.DEAD_LETTERED if self is Reason.DEAD_LETTER else Fate.DROPPED


def reason_of(text: str) -> Reason | None:
    """The reason in a record; None for one that this code does not know (a newer one's, or another program's)."""
    name = text.partition(":")[0]
    return Reason(name) if name in set(Reason) else None


def fate_of(text: str) -> Fate:
    """The fate that goes with a reason in a record."""
    known = reason_of(text)
    return known.fate if known is not None else Fate.DROPPED
