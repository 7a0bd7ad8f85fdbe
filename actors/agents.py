"""Agents from outside as an environment: its answer to a reply is the agent's next request, which ``headrace serve`` passes on.

One thread holds a WebSocket to the door of the run, which it finds in ``RUN/serve.json``. After a new connection everything is sent
again: the server knows what it has received, and this room what it was asked. Without a server, samples wait for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgpack

from actors.environment import Asked, Turn
from actors.room import Said
from actors.turns import Mark, length, since
from broker.errors import EnvironmentFault
from broker.messages import ChatMessage, Prompt
from broker.sessions import ACTORS, Door

if TYPE_CHECKING:
    from actors.episodes import Episode

log = logging.getLogger("agents")
LOOK_SECONDS, SAY_SECONDS, BEAT_SECONDS = 0.5, 30.0, 10.0
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Agents:
    """An environment whose episodes are played by agents through ``headrace serve``. ``parser`` is the format of the model's tool calls (``actors.tools``), ``idle``
    the seconds after which a session that says nothing has ended."""

    parser: str = "hermes"
    idle: float = 600.0

    def open(self, prompt: Prompt, index: int) -> Turn:
        raise EnvironmentFault("agents come in through headrace serve")

    def step(self, reply: str) -> Turn:
        raise EnvironmentFault("agents come in through headrace serve")


@dataclass(slots=True)
class _Sample:
    """A sample that an agent plays, or will. ``asked`` turns were handed to the worker, ``replies`` were given; of these the door has yet
    to say that it has kept those in ``unsure``."""

    prompt: bytes
    index: int
    mark: Mark = field(default_factory=Mark)
    asked: int = 0
    replies: int = 0
    unsure: dict[int, dict[str, Any]] = field(default_factory=dict)
    over: bool = False
    closed: str = ""


class AgentRoom(threading.Thread):
    """The samples of one actor that agents play. Its methods are the worker's, but for ``run``; what comes of them is put into ``out``."""

    def __init__(self, name: str, directory: Path | None, actor: str, out: queue.SimpleQueue[Said]) -> None:
        super().__init__(name=f"agents {name}", daemon=True)
        self._directory, self._actor, self._out = directory, actor, out
        self._instance = uuid.uuid4().hex
        self._loop = asyncio.new_event_loop()
        self._samples: dict[int, _Sample] = {}
        self._outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._ending = asyncio.Event()
        self._since = time.monotonic()  # when somebody began to wait for a door
        self.tickets: set[int] = set()
        self.start()

    # -- the worker's side ---------------------------------------------------------------------------------------------

    def open(self, ticket: int, prompt: bytes, index: int) -> None:
        def begin() -> None:
            sample = self._samples[ticket] = _Sample(prompt, index)
            self._say(self._opened(ticket, sample))

        self._post(begin)

    def step(self, ticket: int, reply: str, episode: Episode | None) -> None:
        """A reply has come: the agent's, and the door's to keep."""
        assert episode is not None
        sample = self._samples[ticket]
        turn, number, sample.mark = since(episode, sample.mark), sample.replies, Mark.of(episode)

        def tell() -> None:
            sample.replies += 1
            sample.unsure[number] = turn
            self._say({"k": "reply", "ticket": ticket, "number": number, "turn": turn})

        self._post(tell)

    def refuse(self, ticket: int, why: str) -> bool:
        """What the agent asked cannot be done. True: the sample waits for something else."""

        def tell() -> None:
            if (sample := self._samples.get(ticket)) is not None:
                sample.asked -= 1
                self._say({"k": "refused", "ticket": ticket, "number": sample.asked, "why": why})

        self._post(tell)
        return True

    def close(self, ticket: int, why: str) -> None:
        """The sample has ended: ``why`` is its finish reason, or empty where it is given up."""

        def end() -> None:
            if (sample := self._samples.get(ticket)) is not None:
                sample.closed = why or "given up"
                self._say({"k": "closed", "ticket": ticket, "why": sample.closed})

        self._post(end)

    def end(self) -> None:
        self._post(self._ending.set)

    def _post(self, what: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(what)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    async def _main(self) -> None:
        over = asyncio.ensure_future(self._ending.wait())
        while not over.done():
            link = asyncio.ensure_future(self._connect())
            await asyncio.wait((link, over), return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                link.cancel()
            why = "it is away"
            with contextlib.suppress(asyncio.CancelledError):
                why = await link
            self._complain(why)
            await asyncio.wait((over,), timeout=LOOK_SECONDS)

    async def _connect(self) -> str:
        """Talk to the door while it is there; returns why it is not."""
        door = Door.find(self._directory) if self._directory is not None else None
        if door is None:
            return "nobody has started it: headrace serve RUN"
        headers = {"Authorization": f"Bearer {door.token}"}
        try:
            async with (
                aiohttp.ClientSession(headers=headers) as http,
                http.ws_connect(f"{door.url}{ACTORS}", heartbeat=BEAT_SECONDS, max_msg_size=MAX_BYTES) as socket,
            ):
                await self._talk(socket)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"
        except (ValueError, KeyError, TypeError) as error:  # whoever listens there is no door of this version
            return f"it says what cannot be read ({type(error).__name__}: {error})"
        return "it has closed the connection"

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Say all that is so, then what is new; hear until the connection ends."""
        self._outgoing = asyncio.Queue()
        self._say({"k": "hello", "name": self._actor, "instance": self._instance})
        for ticket, sample in self._samples.items():
            self._say(self._opened(ticket, sample))
            for number, turn in sample.unsure.items():
                self._say({"k": "reply", "ticket": ticket, "number": number, "turn": turn})
            if sample.closed:
                self._say({"k": "closed", "ticket": ticket, "why": sample.closed})
        sending = asyncio.ensure_future(self._send(socket))
        try:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    self._hear(msgpack.unpackb(message.data, strict_map_key=False))
        finally:
            sending.cancel()
            self._since = time.monotonic()

    async def _send(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await socket.send_bytes(msgpack.packb(await self._outgoing.get()))

    def _say(self, message: dict[str, Any]) -> None:
        self._outgoing.put_nowait(message)

    @staticmethod
    def _opened(ticket: int, sample: _Sample) -> dict[str, Any]:
        return {
            "k": "open", "ticket": ticket, "prompt": sample.prompt, "index": sample.index, "replies": sample.replies,
            "asked": sample.asked,
        }  # fmt: skip

    def _hear(self, message: dict[str, Any]) -> None:
        ticket = message["ticket"]
        sample = self._samples.get(ticket)
        if sample is None:
            return
        if message["k"] == "kept":
            sample.unsure.pop(message["number"], None)
        elif message["k"] == "closed":
            del self._samples[ticket]
        elif sample.closed or sample.over:
            return
        elif message["k"] == "gone":
            sample.over = True
            self._out.put(Said(ticket, None, message["why"], unwanted=True))
        elif message["k"] == "over":
            sample.over = True
            self._out.put(Said(ticket, Turn(over=True, asked=self._asked(sample, message))))
        elif message["number"] == (sample.asked or len(message["earlier"])):  # else it is under way already
            asked = self._asked(sample, message)
            said = tuple(ChatMessage(*m) for m in message["messages"])
            sample.asked = message["number"] + 1
            self._out.put(Said(ticket, Turn(said, tools=tuple(message["tools"]), asked=asked)))

    @staticmethod
    def _asked(sample: _Sample, message: dict[str, Any]) -> Asked:
        """What is asked; a sample that was played elsewhere goes on behind the turns that it had."""
        earlier = tuple(message["earlier"]) if sample.replies == 0 else ()
        if earlier:
            sample.replies = sample.asked = len(earlier)
            sample.mark = Mark(*(sum(n) for n in zip(*(length(t) for t in earlier), strict=True)))
        return Asked(message["session"], message.get("limit", 0), tuple(message.get("stop", ())), earlier)

    def _complain(self, why: str) -> None:
        """Say now and then that samples wait for a door."""
        now = time.monotonic()
        if not self._samples:
            self._since = now
        elif now - self._since > SAY_SECONDS:
            self._since = now
            log.warning(
                "%d samples wait for agents, and for the door that they come in by: %s", len(self._samples), why
            )
