"""Handles a request: finds its session, a sample for the session, and the sample's actor. The reply is durable before it is sent.

A request that continues what its session has said is the next turn. The same request again gets the same reply, unless that was sent
already. Any other past begins another part: an episode of its own, in another sample.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from broker.errors import HeadraceError
from broker.messages import Vote
from headrace.serving.actors import Actors, Slot
from headrace.serving.forms import ApiError, ChatRequest, Reply, refuse
from headrace.serving.journal import Journal
from headrace.serving.sessions import Book, Part, Session

log = logging.getLogger("serve")
LOOK_SECONDS = 1.0


class Desk:
    """``parsers`` and ``idle`` are those of the environments of agents, by name; ``outside`` the rewarders that programs outside vote for.

    ``patience`` is how many seconds a request waits for a sample, or for an actor. ``lenient``: a temperature or top_p other than the
    trainer's is left aside instead of refused.
    """

    def __init__(
        self, book: Book, journal: Journal, parsers: Mapping[str, str], idle: Mapping[str, float], outside: frozenset[str],
        patience: float, lenient: bool = False,
    ) -> None:  # fmt: skip
        self.book, self._journal = book, journal
        self._parsers, self._idle, self._outside = parsers, idle, outside
        self._patience, self._lenient = patience, lenient
        self._changed = asyncio.Event()
        self.actors = Actors(book, journal, self._news)
        self._binding = asyncio.Lock()

    def _news(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _look(self, deadline: float, why: str) -> None:
        """Wait for news. Raises ApiError, which says what for, at the deadline."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise ApiError(f"nothing for {self._patience:g} s: {why}", status=503, code="no_sample")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), min(left, LOOK_SECONDS))

    # -- sessions ------------------------------------------------------------------------------------------------------

    def session(self, name: str) -> Session:
        """Raises ApiError if there is none."""
        found = self.book.sessions.get(name)
        if found is None:
            raise ApiError(f"session = {name!r}: nobody has opened it", status=404, param="session", code="no_session")
        return found

    async def begin(self, name: str, task: str) -> tuple[Session, Slot]:
        """Open a session on a task that the run asks, and say which."""
        name = name or uuid.uuid4().hex
        if name in self.book.sessions:
            raise ApiError(
                f"session = {name!r}: it is open already", status=409, param="session", code="session_exists"
            )
        session = Session(name, task)
        self.book.sessions[name] = session
        try:
            return session, await self._bind(session, pulled=True)
        except BaseException:
            if not session.parts:
                self.book.sessions.pop(name, None)
            raise

    async def _bind(self, session: Session, pulled: bool = False) -> Slot:
        """Give the session a sample of its task."""
        deadline = time.monotonic() + self._patience
        while True:
            async with self._binding:
                slot = next((s for s in self.actors.free() if self._fits(s, session, pulled)), None)
                if slot is not None:
                    await self._bound(session, slot)
                    return slot
            open_ = [s for s in self.actors.slots.values() if s.open]
            if not session.task and not pulled and self.actors.slots and not open_:
                raise ApiError(
                    "this run asks tasks of its own: open a session with POST /v1/headrace/sessions, which says its task",
                    param="session", code="no_task",
                )  # fmt: skip
            await self._look(deadline, self._waits_for(session))

    def _waits_for(self, session: Session) -> str:
        """Why there is no sample, for people."""
        linked = {s.link.name for s in self.actors.slots.values() if s.link is not None}
        if not linked:
            return "no actor has asked for an agent; is the run alive (headrace doctor RUN), and does its data name the environment?"
        task = f" of task {session.task!r}" if session.task else ""
        return f"all samples{task} that actors have are taken; the learner feeds more when some have their rewards"

    def _fits(self, slot: Slot, session: Session, pulled: bool) -> bool:
        label = self.book.labels.get(slot.sample[0])
        if slot.open:
            return (label is None or label == session.task) and slot.sample[0] not in self.book.settled
        return slot.label() == session.task or (pulled and not session.task)

    async def _bound(self, session: Session, slot: Slot) -> None:
        prompt = slot.prompt
        data = {
            "group": slot.sample[0], "index": slot.sample[1], "task": session.task if slot.open else slot.label(), "open": slot.open,
            "parser": self._parsers[prompt.environment], "purpose": prompt.purpose, "environment": prompt.environment,
            "mix": list(prompt.rewards), "part": session.lost + len(session.parts),
        }  # fmt: skip
        self.book.sessions[session.name] = session
        self.book.take(session.name, "bound", data)
        slot.asked, slot.refusal = 0, ""
        await self._journal.tell(session.name, "bound", **data)

    # -- turns ---------------------------------------------------------------------------------------------------------

    async def chat(self, request: ChatRequest) -> Reply:
        """The reply to a request. Raises ApiError."""
        name = request.session or uuid.uuid4().hex
        session = self.book.sessions.setdefault(name, Session(name, request.task))
        if session.ended:
            raise ApiError(
                f"session = {name!r}: it has ended ({session.ended}); use another name", status=409, param="session", code="session_ended"
            )  # fmt: skip
        if request.task and session.parts and request.task != session.task:
            raise refuse("metadata.task", request.task, f"session {name!r} plays task {session.task!r}")
        if session.answer is not None and (session.asking.messages, session.asking.tools) != (
            request.messages,
            request.tools,
        ):
            raise ApiError(
                f"session = {name!r}: another request of it is under way; use a session for each conversation", status=409,
                param="session", code="session_busy",
            )  # fmt: skip
        if session.answer is None:  # else it is the same one again, whose first connection broke
            session.asking = request
            session.answer = asyncio.ensure_future(self._answer(session, request))
            session.answer.add_done_callback(lambda _: self._answered(session))
        return await asyncio.shield(session.answer)

    def _answered(self, session: Session) -> None:
        answer, session.answer, session.asking, session.last = session.answer, None, None, time.monotonic()
        if answer is not None and not answer.cancelled() and answer.exception() is not None and not session.parts:
            self.book.sessions.pop(session.name, None)

    async def _answer(self, session: Session, request: ChatRequest) -> Reply:
        deadline, sent = time.monotonic() + self._patience, False
        while True:
            part = session.part
            if part is None:
                await self._bind(session)
                continue
            fit = part.fit(request.messages, request.tools)
            if fit == "again" and (sent or session.told < len(part.turns)):
                return self._reply(session, part)
            if part.over and sent and not part.gone:
                raise part.refusal()
            if fit != "next" or part.over:
                await self._close(session, part)
                await self._bind(session)
                sent = False
                continue
            slot = self.actors.place(part)
            if slot is None:
                await self._look(
                    deadline, f"the actor that played session {session.name!r} is gone, and no other has its prompt yet"
                )
                continue
            deadline = time.monotonic() + self._patience
            if slot.refusal and sent:
                why, slot.refusal = slot.refusal, ""
                raise ApiError(why, param="messages", code="context_length_exceeded" if "context" in why else "refused")
            await self._send(session, part, slot, request)
            sent = True
            await self._look(deadline, "")

    async def _send(self, session: Session, part: Part, slot: Slot, request: ChatRequest) -> None:
        """Hand a turn to the actor, once."""
        self._check(slot, request)
        number = len(part.turns)
        if slot.asked > number or slot.link is None:
            return
        slot.asked, slot.refusal = number + 1, ""
        new = request.messages[len(part.talk) :]
        said = self._written(session, part, new)
        await slot.link.say(
            "turn", slot.ticket, number=number, session=session.label, messages=said, tools=list(request.tools) if not number else [],
            limit=request.limit, stop=list(request.stop), earlier=part.turns,
        )  # fmt: skip

    @staticmethod
    def _written(session: Session, part: Part, new: Any) -> list[list[str]]:
        """Messages as the template takes them: the model's own ones of earlier parts as they were sampled."""
        before = session.parts[-2] if len(session.parts) > 1 and not part.turns else part
        return [list(m) for m in before.written(new)]

    def _check(self, slot: Slot, request: ChatRequest) -> None:
        sampling = slot.prompt.sampling
        if request.limit > sampling.max_new_tokens:
            raise refuse(
                "max_tokens", request.limit, f"the trainer's limit is {sampling.max_new_tokens}; ask for that or less"
            )
        for field, asked, own in (
            ("temperature", request.temperature, sampling.temperature), ("top_p", request.top_p, sampling.top_p),
        ):  # fmt: skip
            if asked is not None and not self._lenient and not math.isclose(asked, own):
                raise refuse(
                    field,
                    asked,
                    f"the trainer samples with {own:g}; ask for that, or leave it out",
                    "unsupported_value",
                )

    def _reply(self, session: Session, part: Part) -> Reply:
        turn = part.turns[-1]
        ends = [s for t in part.turns for s in t["segments"]]
        start, end = ends[-1][1], ends[-1][2]
        versions = [v for t in part.turns for v, _ in t["versions"]]
        return Reply(
            turn["text"], turn["finish"], start, end - start, max(versions, default=0), session.name, bool(part.tools), part.parser
        )  # fmt: skip

    def told(self, name: str) -> None:
        """The agent has been sent its reply."""
        session = self.book.sessions[name]
        session.told = len(session.part.turns) if session.part is not None else 0
        session.last = time.monotonic()

    # -- ends and rewards ----------------------------------------------------------------------------------------------

    async def _close(self, session: Session, part: Part) -> None:
        """End a part whose past has been edited; its episode is what it was until then."""
        if not part.over:
            await self.actors.tell_closed(session, part, "edited")
            log.info("session %s has another past: its part %d ends", session.name, len(session.parts))
        slot = self.actors.place(part)
        if slot is not None:
            await self.actors.end(slot, session, part)

    async def finish(self, session: Session, why: str) -> None:
        """End a session: what it has played is published. One that has said nothing gives its sample back."""
        if session.answer is not None:
            raise ApiError(
                f"session = {session.name!r}: a request of it is under way; finish it when that has its reply", status=409, param="session",
                code="session_busy",
            )  # fmt: skip
        if session.ended:
            return
        part, data = session.part, {"why": why}
        unused = part is not None and not part.turns
        if unused:
            await self._journal.tell(session.name, "freed")
        await self._journal.tell(session.name, "ended", **data)
        if unused:  # not before: a session whose end was not written must be found again
            self.book.take(session.name, "freed", {})
        self.book.take(session.name, "ended", data)
        for part in session.parts:
            slot = self.actors.place(part)
            if slot is not None:
                await self.actors.end(slot, session, part)
        self._news()

    async def reward(self, session: Session, rewarder: str, value: float, why: str) -> list[Vote]:
        """Vote on all parts of a session, which ends with it. Raises ApiError."""
        if not session.parts:
            raise ApiError(
                f"session = {session.name!r}: it has no sample to vote on: it has said nothing, or that is older than [broker] retention_hours; "
                "vote sooner", status=409, param="session", code="no_sample",
            )  # fmt: skip
        known = sorted(self._outside & {name for part in session.parts for name in part.mix})
        if not rewarder and len(known) != 1:
            raise refuse("rewarder", rewarder, f"name the rewarder that this is the vote of, one of {known}")
        rewarder = rewarder or known[0]
        if rewarder not in known:
            raise refuse("rewarder", rewarder, f"name one of the mix that is external in the run file: {known}")
        before = session.rewards.get(rewarder)
        if before is not None and before != value:
            raise ApiError(
                f"reward = {value}: {rewarder} has given session {session.name!r} {before} already; the first vote holds", status=409,
                param="reward", code="rewarded",
            )  # fmt: skip
        await self.finish(session, "rewarded")
        votes = [
            Vote(p.sample[0], p.sample[1], rewarder, "value", value, why, created=time.time())
            for p in session.parts
            if p.replies and not p.gone
        ]
        await self._journal.vote(votes, session.name, {"rewarder": rewarder, "value": value})
        self.book.take(session.name, "reward", {"rewarder": rewarder, "value": value})
        return votes

    async def end_idle(self) -> None:
        """End the sessions that have said nothing for long, for as long as the door is open."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            for session in list(self.book.sessions.values()):
                part = session.part
                if session.ended or part is None or session.answer is not None:
                    continue
                if now - session.last > self._idle.get(part.environment, math.inf):
                    log.info("session %s has said nothing for long and ends", session.name)
                    try:
                        await self.finish(session, "idle")
                    except (HeadraceError, OSError) as error:
                        log.warning("session %s cannot end yet: %s", session.name, error)
