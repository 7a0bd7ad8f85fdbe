"""What comes out of a room: a turn of an episode, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from actors.environment import Turn


@dataclass(frozen=True, slots=True)
class Said:
    """What came of a call for episode ``ticket``: a turn, or why there is none. ``lost``: another episode's failure took it along;
    ``unwanted``: its group has ended elsewhere."""

    ticket: int
    turn: Turn | None
    why: str = ""
    lost: bool = False
    unwanted: bool = False
