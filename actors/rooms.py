"""Where environments live: child processes that each hold many episodes, so that a slow, hung or dead one holds up nobody's sampling.

``ready`` gives what has been said meanwhile. A call that fails ends its child; the episodes that lived there are ``lost`` with it and may
begin again, for nothing of them was published.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from actors.config import EnvironmentTable
from actors.room import Call, Room, Said, WideRoom
from broker.errors import EnvironmentFault
from broker.messages import Prompt, encode

__all__ = ["Rooms", "Said"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an episode lives, and whose it is."""

    room: Room
    sample: tuple[str, int]


class Rooms:
    """The environments of a run, by the names of their tables. Children start when they are first needed. Driven by one thread."""

    def __init__(self, tables: Mapping[str, EnvironmentTable], base: Path) -> None:
        self._tables, self._base = tables, base
        self._rooms: dict[str, list[Room]] = {}
        self._alone: dict[str, Room] = {}
        self._suspects: set[tuple[str, int]] = set()
        """Samples under which a process ended that others shared: they are answered one after the other, until it is known which it was."""
        self._where: dict[int, _Place] = {}
        self._out: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._tickets = 0

    def limit(self, name: str) -> float:
        """Seconds that an episode may take; 0 for ever."""
        return self._tables[name].seconds

    def open(self, prompt: Prompt, index: int) -> int:
        """Begin an episode; returns its ticket. Raises EnvironmentFault if the run file has no such environment."""
        name = prompt.environment
        if name not in self._tables:
            raise EnvironmentFault(
                f"the prompt asks for environment {name!r}, which the run file does not have as [environments.{name}]"
            )
        self._tickets += 1
        sample = prompt.group_id, index
        room = self._room_alone(name) if sample in self._suspects else self._roomiest(name)
        room.tickets.add(self._tickets)
        self._where[self._tickets] = _Place(room, sample)
        room.put(Call(self._tickets, "open", {"prompt": encode(prompt), "index": index}))
        return self._tickets

    def step(self, ticket: int, reply: str) -> None:
        self._where[ticket].room.put(Call(ticket, "step", {"reply": reply}))

    def forget(self, ticket: int) -> None:
        """The episode is over, or not wanted any more."""
        place = self._where.pop(ticket, None)
        if place is not None:
            place.room.tickets.discard(ticket)
            place.room.put(Call(ticket, "close"))

    @property
    def waiting(self) -> bool:
        """Whether any episode lives."""
        return bool(self._where)

    def ready(self) -> list[Said]:
        """What was said since the last look, of the episodes that live."""
        found = []
        while not self._out.empty():
            said = self._out.get()
            if said.ticket in self._where:
                found.append(said)
                if said.suspect:
                    self._suspects.add(self._where[said.ticket].sample)
        return found

    def _roomiest(self, name: str) -> Room:
        rooms = self._rooms.setdefault(name, [])
        table = self._tables[name]
        if len(rooms) < table.processes and all(room.tickets for room in rooms):
            kind = Room if table.threads == 1 else WideRoom
            rooms.append(kind(name, table, self._base, self._out))
        return min(rooms, key=lambda room: len(room.tickets))

    def _room_alone(self, name: str) -> Room:
        if name not in self._alone:
            self._alone[name] = Room(name, self._tables[name], self._base, self._out)
        return self._alone[name]

    def close(self) -> None:
        rooms = [*(room for rooms in self._rooms.values() for room in rooms), *self._alone.values()]
        for room in rooms:
            room.end()
        deadline = time.monotonic() + 5
        for room in rooms:
            room.join(max(0.0, deadline - time.monotonic()))
