"""Where environments live: child processes that each hold many episodes, so that a slow, hung or dead one holds up nobody's sampling.

Every child has a thread of this process beside it; ``ready`` gives what has been said meanwhile. A call that fails ends its child; the
episodes that lived there are ``LOST`` with it and may begin again, for nothing of them was published.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from actors.agents import AgentRoom
from actors.config import EnvironmentTable
from actors.environment import Environment, pack, unpack
from actors.said import Said
from broker import plugins
from broker.errors import EnvironmentFault, HeadraceError
from broker.isolation import Failed, Isolated
from broker.messages import Prompt, decode, encode
from broker.sessions import AGENTS

if TYPE_CHECKING:
    from actors.episodes import Episode

log = logging.getLogger("environment")
LOST = "lost"
RETRY_SECONDS, SAY_SECONDS = 1.0, 30.0  # between two tries of what is away, and between two times that this is said
BATCH = 32  # calls that a child is given at once


@dataclass(frozen=True, slots=True)
class _Call:
    ticket: int
    what: str
    body: dict[str, Any]

    def pack(self) -> bytes:
        return msgpack.packb({"ticket": self.ticket, "what": self.what, **self.body})


class _Room(threading.Thread):
    """One child process and what waits for it."""

    def __init__(self, name: str, table: EnvironmentTable, base: Path, out: queue.SimpleQueue[Said]) -> None:
        super().__init__(name=f"environment {name}", daemon=True)
        options = {"use": table.use, "options": table.options, "base": str(base), "name": name}
        self._child = Isolated("actors.rooms:host", options, timeout=table.timeout, memory_mb=table.memory_mb)
        self._name, self._ending = name, threading.Event()
        self._held: list[_Call] = []  # what it asks is away: tried again
        self._away = -SAY_SECONDS  # when that was last said
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._out = out
        self.tickets: set[int] = set()
        self.start()

    def open(self, ticket: int, prompt: bytes, index: int) -> None:
        self._calls.put(_Call(ticket, "open", {"prompt": prompt, "index": index}))

    def step(self, ticket: int, reply: str, episode: Episode | None) -> None:
        if episode is None or episode.finish_reason == "stop":  # else it was cut, and ends the episode
            self._calls.put(_Call(ticket, "step", {"reply": reply}))

    def refuse(self, ticket: int, why: str) -> bool:
        return False

    def close(self, ticket: int, why: str) -> None:
        self._calls.put(_Call(ticket, "close", {}))

    def end(self) -> None:
        """Let the thread end; a call that is under way ends with its child."""
        self._ending.set()
        self._calls.put(None)
        self._child.close()

    def run(self) -> None:
        while True:
            calls, self._held = self._held, []
            try:
                while len(calls) < BATCH:
                    call = self._calls.get(timeout=RETRY_SECONDS) if not calls else self._calls.get_nowait()
                    if call is None:
                        return self._child.stop()
                    calls.append(call)
            except queue.Empty:
                pass
            self._make(calls)
            if self._held and self._ending.wait(RETRY_SECONDS):
                return self._child.stop()

    def _make(self, calls: Sequence[_Call]) -> None:
        answered = 0
        try:
            for place, result in self._child.call([c.pack() for c in calls]):
                answered = place + 1
                self._tell(calls[place], result)
        except HeadraceError as error:  # the child refuses to start: its class or options are wrong
            for call in calls[answered:]:
                self._tell(call, Failed("error", str(error)))
        except (OSError, ValueError) as error:  # ended under way
            for call in calls[answered:]:
                self._tell(call, Failed("killed", f"{type(error).__name__}: {error}"))

    def _tell(self, call: _Call, result: Any) -> None:
        if call.what == "close":
            return
        if isinstance(result, Failed) and result.kind == "outage":
            self._hold(call, result.why)
        elif isinstance(result, Failed):
            self._out.put(Said(call.ticket, None, str(result)))
        elif result == LOST:
            self._out.put(Said(call.ticket, None, "its process ended with another episode", lost=True))
        else:
            self._out.put(Said(call.ticket, unpack(result)))

    def _hold(self, call: _Call, why: str) -> None:
        """What the environment asks is away: the episode waits, and somebody hears of it."""
        if call.ticket not in self.tickets:
            return
        self._held.append(call)
        if time.monotonic() - self._away > SAY_SECONDS:
            self._away = time.monotonic()
            log.warning("environment %s waits: %s", self._name, why)


class Rooms:
    """The environments of a run, by the names of their tables. Children start when they are first needed. Driven by one thread.

    Agents find the samples of ``actor`` through the run's ``directory``.
    """

    def __init__(
        self, tables: Mapping[str, EnvironmentTable], base: Path, directory: Path | None = None, actor: str = ""
    ) -> None:
        self._tables, self._base, self._directory, self._actor = tables, base, directory, actor
        self._rooms: dict[str, list[_Room | AgentRoom]] = {}
        self._where: dict[int, _Room | AgentRoom] = {}
        self._out: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._tickets = 0

    def limit(self, name: str) -> float:
        """Seconds that an episode may take; 0 for ever."""
        return self._tables[name].seconds

    def outside(self, name: str) -> bool:
        """Whether agents from outside play there, so that nobody knows when an episode begins."""
        return name in self._tables and self._tables[name].use == AGENTS

    def open(self, prompt: Prompt, index: int) -> int:
        """Begin an episode; returns its ticket. Raises EnvironmentFault if the run file has no such environment."""
        name = prompt.environment
        if name not in self._tables:
            raise EnvironmentFault(
                f"the prompt asks for environment {name!r}, which the run file does not have as [environments.{name}]"
            )
        self._tickets += 1
        room = self._roomiest(name)
        room.tickets.add(self._tickets)
        self._where[self._tickets] = room
        room.open(self._tickets, encode(prompt), index)
        return self._tickets  # fmt: skip

    def step(self, ticket: int, reply: str, episode: Episode | None = None) -> None:
        """A reply has come; what is said to it comes later, unless it was cut and ends the episode."""
        self._where[ticket].step(ticket, reply, episode)

    def refuse(self, ticket: int, why: str) -> bool:
        """What was said in this episode cannot be answered. True: something else may be said; False: it has failed."""
        return self._where[ticket].refuse(ticket, why)

    def forget(self, ticket: int, why: str = "") -> None:
        """The episode is over (``why`` is its finish reason), or not wanted any more."""
        room = self._where.pop(ticket, None)
        if room is not None:
            room.tickets.discard(ticket)
            room.close(ticket, why)

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
        return found

    def _roomiest(self, name: str) -> _Room | AgentRoom:
        rooms = self._rooms.setdefault(name, [])
        table = self._tables[name]
        if self.outside(name):
            if not rooms:
                rooms.append(AgentRoom(name, self._directory, self._actor, self._out))
        elif len(rooms) < table.processes and all(room.tickets for room in rooms):
            rooms.append(_Room(name, table, self._base, self._out))
        return min(rooms, key=lambda room: len(room.tickets))

    def close(self) -> None:
        rooms = [room for rooms in self._rooms.values() for room in rooms]
        for room in rooms:
            room.end()
        deadline = time.monotonic() + 5
        for room in rooms:
            room.join(max(0.0, deadline - time.monotonic()))


def host(options: dict[str, Any]) -> Any:
    """The handler of a child: calls of many episodes, each with an instance of the environment of its own."""
    base, where = Path(options["base"]), f"[environments.{options['name']}]"
    kind = plugins.load(options["use"], base, where)
    given = {"base": base} if "base" in (plugins.option_names(kind) or ()) else {}  # where its own files lie
    make = lambda: plugins.make(kind, options["options"], f"{where} use = {options['use']!r}", **given)  # noqa: E731
    for method in ("open", "step"):
        if not callable(getattr(make(), method, None)):
            raise EnvironmentFault(
                f"{options['use']} has no method {method}; an environment has open(prompt, index) and step(reply)"
            )
    episodes: dict[int, Environment] = {}

    def handle(payload: bytes) -> Any:
        call = msgpack.unpackb(payload)
        ticket = call["ticket"]
        if call["what"] == "close":
            closing = getattr(episodes.pop(ticket, None), "close", None)
            if callable(closing):
                closing()
            return None
        if call["what"] == "open":
            prompt = decode(call["prompt"])
            assert isinstance(prompt, Prompt)
            episodes[ticket] = make()
            return pack(episodes[ticket].open(prompt, call["index"]))
        if ticket not in episodes:
            return LOST
        return pack(episodes[ticket].step(call["reply"]))

    return handle  # fmt: skip
