"""One child process that holds episodes of an environment, and a thread of this process that waits for its answers.

A ``Room`` has one call answered after the other, so a call that brings its process down is known for certain. A ``WideRoom`` has
several answered at a time, by threads of its child: for environments that wait for something (a tool, a service).
"""

from __future__ import annotations

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

LOST = "lost"
BATCH = 32  # calls that a child is given at a time
COLLECT_SECONDS = 0.05  # that a child of a wide room waits for an answer before it says that there is none


@dataclass(frozen=True, slots=True)
class Said:
    """What came of a call for episode ``ticket``: a turn, or why there is none. ``lost``: another episode's failure may have taken it along;
    ``suspect``: or it has ended the process itself, which is only known if it is alone. ``away``: what the environment asks is away.
    ``unwanted``: its group has ended elsewhere.

    ``seconds`` have passed since the call, waiting for its process included."""

    ticket: int
    turn: Turn | None
    why: str = ""
    lost: bool = False
    suspect: bool = False
    away: bool = False
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
        self._out, self._table = out, table
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
                self._tell(call, _failure(error))
        except (OSError, ValueError) as error:  # ended under way
            for call in calls[answered:]:
                self._tell(call, Failed("killed", f"{type(error).__name__}: {error}"))

    def _tell(self, call: Call, result: Any, suspect: bool = False) -> None:
        if call.what == "close":
            return
        seconds = time.monotonic() - call.asked
        if isinstance(result, Failed):
            self._out.put(Said(call.ticket, None, str(result), away=result.kind == "outage", seconds=seconds))
        elif result == LOST:
            why = "its process ended with another episode"
            self._out.put(Said(call.ticket, None, why, lost=True, suspect=suspect, seconds=seconds))
        else:
            self._out.put(Said(call.ticket, unpack(result), seconds=seconds))


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
            except HeadraceError as error:
                self._child.stop()
                if self._running:
                    self._lose(str(error))
                else:  # the child does not start: its class or options are wrong, or what it needs is away
                    self._fail(_failure(error))
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
            if call.what == "close":  # what the episode still asks for is wanted no more
                self._waiting = deque(c for c in self._waiting if c.ticket != call.ticket)
                self._closing.append(call)
            else:
                self._waiting.append(call)

    def _exchange(self) -> None:
        """Give the child as many calls as it has room for, and read its answers. Raises Failed if it ends meanwhile."""
        begun = [
            self._waiting.popleft() for _ in range(min(len(self._waiting), self._table.threads - len(self._running)))
        ]
        self._running |= {call.ticket: (call, time.monotonic()) for call in begun}
        over = [call for call in self._closing if call.ticket not in self._running]
        self._closing = [call for call in self._closing if call.ticket in self._running]
        payloads = [call.pack() for call in [*over, *begun]]
        if self._running:
            payloads.append(Call(0, "collect", {"seconds": COLLECT_SECONDS}).pack())
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
        """End the process of a call that takes too long, and with it the episodes that live there."""
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
        for call in self._waiting:
            self._tell(call, failure)
        self._waiting.clear()
        self._closing.clear()


def _failure(error: HeadraceError) -> Failed:
    return error if isinstance(error, Failed) else Failed("error", str(error))
