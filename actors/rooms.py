"""Runs environments in child processes that each hold many episodes, so that a slow, hung or dead one does not delay sampling.

``ready`` returns the answers that have arrived. A call that fails ends its child; the episodes in it are ``lost`` and may begin again,
because nothing of them was published.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.agents import AgentRoom
from actors.config import EnvironmentTable
from actors.room import Room, Said, WideRoom
from broker.errors import EnvironmentFault
from broker.messages import Prompt, encode
from broker.sessions import AGENTS

if TYPE_CHECKING:
    from actors.episodes import Episode

__all__ = ["Rooms", "Said"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an episode lives, and whose it is."""

    room: Room | AgentRoom
    sample: tuple[str, int]


class Rooms:
    """The environments of a run, by the names of their tables. Children start when they are first needed. Driven by one thread.

    Agents find the samples of ``actor`` through the run's ``directory``.
    """

    def __init__(
        self, tables: Mapping[str, EnvironmentTable], base: Path, directory: Path | None = None, actor: str = ""
    ) -> None:
        self._tables, self._base, self._directory, self._actor = tables, base, directory, actor
        self._rooms: dict[str, list[Room]] = {}
        self._agents: dict[str, AgentRoom] = {}
        self._alone: dict[str, Room] = {}
        self._suspects: set[tuple[str, int]] = set()
        """Samples under which a process ended that others shared: they are answered one after the other, until it is known which it was."""
        self._where: dict[int, _Place] = {}
        self._out: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._tickets = 0

    def limit(self, name: str) -> float:
        """Seconds that an episode may take; 0 for ever."""
        return self._tables[name].seconds

    def outside(self, name: str) -> bool:
        """Whether agents from outside play there, so that it is not known when an episode begins."""
        return name in self._tables and self._tables[name].use == AGENTS

    def open(self, prompt: Prompt, index: int) -> int:
        """Begin an episode; returns its ticket. Raises EnvironmentFault if the run file has no such environment."""
        name = prompt.environment
        if name not in self._tables:
            raise EnvironmentFault(
                f"the prompt asks for environment {name!r}, which the run file does not have as [environments.{name}]"
            )
        self._tickets += 1
        sample = prompt.group_id, index
        room = self._room_of(name, sample)
        room.tickets.add(self._tickets)
        self._where[self._tickets] = _Place(room, sample)
        room.open(self._tickets, encode(prompt), index)
        return self._tickets

    def step(self, ticket: int, reply: str, episode: Episode | None = None) -> None:
        """Pass on a reply; the answer comes later, unless the reply was cut off and ends the episode."""
        self._where[ticket].room.step(ticket, reply, episode)

    def refuse(self, ticket: int, why: str) -> bool:
        """What was said in this episode cannot be answered. True: something else may be said; False: it has failed."""
        return self._where[ticket].room.refuse(ticket, why)

    def forget(self, ticket: int, why: str = "") -> None:
        """The episode is over (``why`` is its finish reason), or not wanted any more."""
        place = self._where.pop(ticket, None)
        if place is not None:
            place.room.tickets.discard(ticket)
            place.room.close(ticket, why)

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

    def _room_of(self, name: str, sample: tuple[str, int]) -> Room | AgentRoom:
        if not self.outside(name):
            return self._room_alone(name) if sample in self._suspects else self._roomiest(name)
        if name not in self._agents:
            self._agents[name] = AgentRoom(name, self._directory, self._actor, self._out)
        return self._agents[name]

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
        children = [room for rooms in self._rooms.values() for room in rooms]
        rooms: list[Room | AgentRoom] = [*children, *self._alone.values(), *self._agents.values()]
        for room in rooms:
            room.end()
        deadline = time.monotonic() + 5
        for room in rooms:
            room.join(max(0.0, deadline - time.monotonic()))
