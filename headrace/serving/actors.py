"""The actors' side of the server: which samples wait for an agent, in which actor, and the messages exchanged about them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
from aiohttp import WSMsgType, web

from broker.errors import DecodeError
from broker.messages import Prompt, decode
from broker.sessions import OPEN
from headrace.serving.journal import Journal
from headrace.serving.sessions import Book, Part, Sample, Session

log_ = logging.getLogger("serve")
MAX_BYTES = 64 << 20
BEAT_SECONDS = 10.0
ENDED = "its group has ended"


class Link:
    """One connected actor."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        self.name = "?"
        self.slots: dict[int, Slot] = {}

    async def say(self, kind: str, ticket: int, **fields: Any) -> None:
        """What does not arrive is said again when the actor is back."""
        with contextlib.suppress(ConnectionError):
            await self._socket.send_bytes(msgpack.packb({"k": kind, "ticket": ticket, **fields}))


@dataclass(slots=True)
class Slot:
    """A sample that an agent can play in the actor at the other end of ``link``, by its ``ticket``. ``asked`` turns were sent there; of the
    newest, ``refusal`` says why it cannot be answered."""

    prompt: Prompt
    sample: Sample
    link: Link | None = None
    ticket: int = 0
    asked: int = 0
    over: bool = False
    refusal: str = ""

    @property
    def open(self) -> bool:
        """Whether it is a place for any task that an agent names."""
        return self.prompt.kind == OPEN

    def label(self) -> str:
        """The name of a task that the data gives."""
        return str(self.prompt.metadata.get("task") or self.prompt.group_id.rpartition("@")[0])


class Actors:
    """``news`` is called when a waiting request may be able to continue."""

    def __init__(self, book: Book, journal: Journal, news: Callable[[], None]) -> None:
        self._book, self._journal, self._news = book, journal, news
        self.slots: dict[Sample, Slot] = {}

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """An actor's connection, from its hello to its end."""
        socket = web.WebSocketResponse(heartbeat=BEAT_SECONDS, max_msg_size=MAX_BYTES)
        await socket.prepare(request)
        link = Link(socket)
        try:
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    await self._hear(link, msgpack.unpackb(message.data, strict_map_key=False))
        finally:
            for slot in list(link.slots.values()):
                self._leave(slot)
            log_.info("actor %s has left", link.name)
            self._news()
        return socket

    async def _hear(self, link: Link, message: dict[str, Any]) -> None:
        kind = message["k"]
        if kind == "hello":
            link.name = str(message["name"])
            log_.info("actor %s is here", link.name)
        elif kind == "open":
            await self._open(link, message)
        elif (slot := link.slots.get(message["ticket"])) is not None:
            if kind == "reply":
                await self._reply(slot, message)
            elif kind == "refused":
                slot.asked, slot.refusal = message["number"], str(message["why"])
            elif kind == "closed":
                await self._closed(slot, str(message["why"]))
        elif kind == "closed":
            await link.say("closed", message["ticket"])
        self._news()

    async def _open(self, link: Link, message: dict[str, Any]) -> None:
        try:
            prompt = decode(message["prompt"])
        except DecodeError as error:
            log_.warning("actor %s: %s", link.name, error.reason)
            return
        assert isinstance(prompt, Prompt)
        sample = (prompt.group_id, int(message["index"]))
        slot = self.slots.setdefault(sample, Slot(prompt, sample))
        if slot.link is not None and slot.link is not link:  # another actor has been given the prompt
            await slot.link.say("gone", slot.ticket, why="another actor has it")
            slot.link.slots.pop(slot.ticket, None)
        slot.link, slot.ticket, slot.asked, slot.refusal, slot.over = (
            link,
            message["ticket"],
            message["asked"],
            "",
            False,
        )
        link.slots[slot.ticket] = slot
        if prompt.group_id in self._book.settled:
            await self._drop(slot)
        elif (played := self._book.playing.get(sample)) is not None:
            session, part = played
            if session.ended or part.over:
                await self.end(slot, session, part)

    async def _reply(self, slot: Slot, message: dict[str, Any]) -> None:
        played = self._book.playing.get(slot.sample)
        if played is not None:
            session, part = played
            if message["number"] == len(part.turns):
                data = {"part": session.number(part), "turn": message["turn"]}
                await self._journal.tell(session.name, "turn", **data)
                self._book.take(session.name, "turn", data)
        assert slot.link is not None
        await slot.link.say("kept", slot.ticket, number=message["number"])

    async def _closed(self, slot: Slot, why: str) -> None:
        played = self._book.playing.get(slot.sample)
        link, ticket = slot.link, slot.ticket
        if played is not None and why != "given up":
            session, part = played
            if not part.closed:
                await self.tell_closed(session, part, why)
        self._leave(slot)
        if link is not None:
            await link.say("closed", ticket)

    async def tell_closed(self, session: Session, part: Part, why: str, gone: str = "") -> None:
        data = {"part": session.number(part), "why": why, "gone": gone}
        await self._journal.tell(session.name, "closed", **data)
        self._book.take(session.name, "closed", data)

    def _leave(self, slot: Slot) -> None:
        """The sample is in no actor any more."""
        if slot.link is not None:
            slot.link.slots.pop(slot.ticket, None)
        slot.link = None
        self.slots.pop(slot.sample, None)

    # -- for the desk --------------------------------------------------------------------------------------------------

    def free(self) -> list[Slot]:
        """The samples that nobody plays, those that were asked first in front."""
        found = [
            s for s in self.slots.values() if s.link is not None and not s.over and s.sample not in self._book.playing
        ]
        return sorted(found, key=lambda s: (s.prompt.purpose == "train", s.prompt.created, s.prompt.number, s.sample))

    def place(self, part: Part) -> Slot | None:
        """Where a part can go on; None while no actor has it."""
        slot = self.slots.get(part.sample)
        return slot if slot is not None and slot.link is not None else None

    async def end(self, slot: Slot, session: Session, part: Part) -> None:
        """Have an actor publish what was played, once."""
        if slot.over or slot.link is None or not part.turns:
            return
        slot.over = True
        await slot.link.say("over", slot.ticket, session=session.name, earlier=part.turns)

    async def ended(self, group: str, why: str) -> None:
        """A group has ended: nobody plays on in it. ``why`` is empty where its samples were used."""
        self._book.settled[group] = why  # from now on nobody is given a place in it
        for slot in [s for s in self.slots.values() if s.sample[0] == group]:
            await self._drop(slot)
        for session, part in self._book.parts_in(group):
            if not session.ended and not part.over:
                await self.tell_closed(session, part, "", gone=why or ENDED)
        self._book.settle(group, why)
        self._news()

    async def _drop(self, slot: Slot) -> None:
        if slot.link is not None and not slot.over:
            slot.over = True
            await slot.link.say("gone", slot.ticket, why=self._book.settled[slot.sample[0]] or ENDED)
