"""One child process that holds episodes of an environment, with a thread of this process beside it that waits for its answers.

A ``Room`` has one call answered after the other, so a call that brings its process down is known for certain. A ``WideRoom`` has
several answered at a time, by threads of its child: for environments that wait for something (a tool, a service).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from actors.config import EnvironmentTable
from actors.environment import Turn, unpack
from broker.errors import HeadraceError
from broker.isolation import Failed, Isolated

if TYPE_CHECKING:
    from actors.episodes import Episode

log = logging.getLogger("environment")
LOST = "lost"
RETRY_SECONDS, SAY_SECONDS = 1.0, 30.0  # between two tries of what is away, and between two times that this is said
BATCH = 32  # calls that a child is given at a time
COLLECT_SECONDS = 0.05  # that a child of a wide room waits for an answer before it says that there is none


@dataclass(frozen=True, slots=True)
class Said:
    """What came of a call for episode ``ticket``: a turn, or why there is none. ``lost``: another episode's failure may have taken it along;
    ``suspect``: or it has ended the process itself, which is only known if it is alone. ``unwanted``: its group has ended elsewhere.

    ``seconds`` have passed since the call, waiting for its process included."""

    ticket: int
    turn: Turn | None
    why: str = ""
    lost: bool = False
    suspect: bool = False
    seconds: float = 0.0
    unwanted: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """``open``, ``step`` or ``close`` for episode ``ticket``."""

    ticket: int
    what: str
    body: dict[str, Any] = field(default_factory=dict)
    asked: float = field(default_factory=time.monotonic)

    def pack(self) -> bytes:
        return msgpack.packb({"ticket": self.ticket, "what": self.what, **self.body})


class Room(threading.Thread):
    """One child process and what waits for it; its answers go to ``out``."""

    def __init__(self, name: str, table: EnvironmentTable, base: Path, out: queue.SimpleQueue[Said]) -> None:
        super().__init__(name=f"environment {name}", daemon=True)
        options = {"use": table.use, "options": table.options, "base": str(base), "name": name, "threads": self._threads(table)}  # fmt: skip
        self._child = Isolated("actors.host:host", options, timeout=table.timeout, memory_mb=table.memory_mb)
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._out, self._table, self._name = out, table, name
        self._held: list[Call] = []  # what these ask is away: they are made again
        self._away = -SAY_SECONDS  # when that was last said
        self.tickets: set[int] = set()
        self.start()

    @staticmethod
    def _threads(table: EnvironmentTable) -> int:
        return 0

    def put(self, call: Call) -> None:
        self._calls.put(call)

    def open(self, ticket: int, prompt: bytes, index: int) -> None:
        self.put(Call(ticket, "open", {"prompt": prompt, "index": index}))

    def step(self, ticket: int, reply: str, episode: Episode | None) -> None:
        if episode is None or episode.finish_reason == "stop":  # else it was cut, and ends the episode
            self.put(Call(ticket, "step", {"reply": reply}))

    def refuse(self, ticket: int, why: str) -> bool:
        """It cannot be asked for anything else."""
        return False

    def close(self, ticket: int, why: str) -> None:
        self.put(Call(ticket, "close"))

    def end(self) -> None:
        """Let the thread end; a call that is under way ends with its child."""
        self._calls.put(None)
        self._child.close()

    def run(self) -> None:
        while (call := self._calls.get()) is not None:
            calls = [call]
            while len(calls) < BATCH and not self._calls.empty():
                more = self._calls.get()
                if more is None:
                    self._calls.put(None)
                    break
                calls.append(more)
            self._make(calls)
        self._child.stop()

    def _make(self, calls: Sequence[Call]) -> None:
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

    def _tell(self, call: Call, result: Any, suspect: bool = False) -> None:
        if call.what == "close":
            return
        seconds = time.monotonic() - call.asked
        if isinstance(result, Failed) and result.kind == "outage":
            self._hold(call, result.why)
        elif isinstance(result, Failed):
            self._out.put(Said(call.ticket, None, str(result), seconds=seconds))
        elif result == LOST:
            why = "its process ended with another episode"
            self._out.put(Said(call.ticket, None, why, lost=True, suspect=suspect, seconds=seconds))
        else:
            self._out.put(Said(call.ticket, unpack(result), seconds=seconds))

    def _hold(self, call: Call, why: str) -> None:
        """What the environment asks is away: its episode waits, and somebody hears of it."""
        if not self._held:
            again = threading.Timer(RETRY_SECONDS, self._call_again)
            again.daemon = True
            again.start()
        self._held.append(call)
        if time.monotonic() - self._away > SAY_SECONDS:
            self._away = time.monotonic()
            log.warning("environment %s waits: %s", self._name, why)

    def _call_again(self) -> None:
        held, self._held = self._held, []
        for call in held:
            if call.ticket in self.tickets:
                self.put(call)


class WideRoom(Room):
    """Up to ``threads`` calls are under way in the child at the same time; no more are given to it, so each begins at once."""

    def __init__(self, name: str, table: EnvironmentTable, base: Path, out: queue.SimpleQueue[Said]) -> None:
        self._waiting: deque[Call] = deque()
        self._closing: list[Call] = []
        self._running: dict[int, tuple[Call, float]] = {}
        """By ticket, the calls under way and when each began."""
        super().__init__(name, table, base, out)

    @staticmethod
    def _threads(table: EnvironmentTable) -> int:
        return table.threads

    def run(self) -> None:
        while self._take():
            starts = self._child.restarts
            try:
                self._child.start()
                if self._child.restarts != starts:
                    self._lose("killed: its process ended")
                self._exchange()
            except Failed as error:
                self._child.stop()
                self._lose(str(error))
            except HeadraceError as error:  # the child refuses to start: its class or options are wrong
                self._fail(Failed("error", str(error)))
            except (OSError, ValueError) as error:
                self._child.stop()
                self._lose(f"killed: {type(error).__name__}: {error}")
        self._child.stop()

    def _take(self) -> bool:
        """Take what has been asked, and wait for it where there is nothing else to do; False when this room is to end."""
        while True:
            idle = not (self._running or self._waiting or self._closing)
            try:
                call = self._calls.get(block=idle)
            except queue.Empty:
                return True
            if call is None:
                return False
            (self._closing if call.what == "close" else self._waiting).append(call)

    def _exchange(self) -> None:
        """Give the child what it has room for, and hear what it has to say. Raises Failed where it ends under way."""
        begun = [
            self._waiting.popleft() for _ in range(min(len(self._waiting), self._table.threads - len(self._running)))
        ]
        self._running |= {call.ticket: (call, time.monotonic()) for call in begun}
        given, self._closing = [*self._closing, *begun], []
        payloads = [call.pack() for call in given] + [Call(0, "collect", {"seconds": COLLECT_SECONDS}).pack()]
        starts = self._child.restarts
        for _, result in self._child.call(payloads):
            if isinstance(result, Failed):
                raise result
            if self._child.restarts != starts:
                raise Failed("killed", "its process ended")
            for ticket, said in result or ():
                call, _ = self._running.pop(ticket)
                self._tell(call, said["result"] if "result" in said else Failed(said["kind"], said["error"]))
        self._look_at_the_clock()

    def _look_at_the_clock(self) -> None:
        """A call that takes too long ends its process, and with it the episodes that live there."""
        limit = time.monotonic() - self._table.timeout
        late = [ticket for ticket, (_, begun) in self._running.items() if begun < limit]
        if not late:
            return
        self._child.stop()
        for ticket in late:
            call, _ = self._running.pop(ticket)
            self._tell(call, Failed("timeout", f"no answer within {self._table.timeout:g} s"))
        for call, _ in self._running.values():
            self._tell(call, LOST)
        self._running.clear()

    def _lose(self, why: str) -> None:
        """The process is gone: by the call that was under way, or by one of several."""
        calls = [call for call, _ in self._running.values()]
        for call in calls:
            self._tell(call, Failed("killed", why.removeprefix("killed: ")) if len(calls) == 1 else LOST, suspect=True)
        self._running.clear()

    def _fail(self, failure: Failed) -> None:
        """Nothing can be answered."""
        for call in [*self._waiting, *(call for call, _ in self._running.values())]:
            self._tell(call, failure)
        self._waiting.clear()
        self._closing.clear()
        self._running.clear()
