"""Sessions and their parts as recorded in the log: which sample each plays, what was said, and whether a request continues it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from broker.messages import ChatMessage, SessionEvent
from headrace.serving.forms import ApiError, Message, is_same, said

Sample = tuple[str, int]
"""Group and index."""
Fit = Literal["next", "again", "edited"]
EXPIRED = "expired"
"""Why a session has ended whose beginning retention has removed."""
KEPT = 100_000
"""This many groups and sessions that are over are remembered: so that neither is taken for a new one."""


@dataclass(slots=True)
class Part:
    """One episode of a session. ``turns`` are what actors gave, each with its reply; ``closed`` is why it ended, ``gone`` what became of its
    group before it did. Once its group is ``settled``, and the session over, only how many ``replies`` it had is known."""

    sample: Sample
    parser: str = "hermes"
    purpose: str = "train"
    environment: str = ""
    mix: tuple[str, ...] = ()
    turns: list[Mapping[str, Any]] = field(default_factory=list)
    closed: str = ""
    gone: str = ""
    replies: int = 0
    settled: bool = False
    talk: list[ChatMessage] = field(default_factory=list)
    own: set[int] = field(default_factory=set)
    """Places in ``talk`` of the model's replies."""

    def add(self, turn: Mapping[str, Any]) -> None:
        self.turns.append(turn)
        self.replies += 1
        self.talk += [ChatMessage(*m) for m in turn["turns"]]
        self.own.add(len(self.talk) - 1)
        if turn["finish"] != "stop":  # cut: nothing can follow
            self.closed = turn["finish"]

    def forget(self) -> None:
        """Nobody asks any more what was said."""
        self.turns, self.talk, self.own = [], [], set()

    @property
    def tools(self) -> list[Any]:
        return list(self.turns[0]["tools"]) if self.turns else []

    @property
    def over(self) -> bool:
        return bool(self.closed or self.gone)

    def refusal(self) -> ApiError:
        """Why nothing can follow what was said."""
        if self.closed == "turns":
            return ApiError(
                "messages: the session has had as many replies, or as much time, as the run allows ([learner] sampling max_turns, seconds of the "
                "environment); its episode has ended with the last one", param="messages", code="max_turns",
            )  # fmt: skip
        return ApiError(
            "messages: they leave no room for a reply ([actors] context_length, [learner] sampling max_total); the episode has ended with the last "
            "one; shorten the context to go on in another", param="messages", code="context_length_exceeded",
        )  # fmt: skip

    def fit(self, messages: Sequence[Message], tools: Sequence[Any]) -> Fit:
        """Whether a request continues this part, asks for its last reply again, or has another past."""
        if not self.turns:
            return "next"
        if list(tools) != self.tools:
            return "edited"
        talk = self.talk
        if len(messages) == len(talk) - 1 and self._begins(messages, len(messages)):
            return "again"
        return "next" if len(messages) > len(talk) and self._begins(messages, len(talk)) else "edited"

    def _begins(self, messages: Sequence[Message], count: int) -> bool:
        return all(self._equal(i, messages[i]) for i in range(count))

    def _equal(self, place: int, message: Message) -> bool:
        recorded = self.talk[place]
        if message.role == "assistant":
            return recorded.role == "assistant" and is_same(recorded.content, message, self.parser, bool(self.tools))
        return recorded == said(message, self.parser)

    def written(self, messages: Sequence[Message]) -> list[ChatMessage]:
        """``messages`` as the template takes them; a reply of the model that comes in another form is the one that was sampled."""
        out = []
        for message in messages:
            known = next((self.talk[i].content for i in sorted(self.own) if self._equal(i, message)), None) if message.role == "assistant" else None  # fmt: skip
            out.append(said(message, self.parser) if known is None else ChatMessage("assistant", known))
        return out


@dataclass(slots=True)
class Session:
    """An agent's session. ``task`` is what its samples are compared with others by. ``told`` counts the replies of the newest part that the
    agent has certainly been sent. ``lost`` parts came before the first of ``parts``: retention has removed their beginnings."""

    name: str
    task: str = ""
    parts: list[Part] = field(default_factory=list)
    lost: int = 0
    ended: str = ""
    rewards: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.monotonic)
    told: int = 0
    asking: Any = None
    answer: asyncio.Future[Any] | None = None
    """Of the request under way, ``asking``."""

    @property
    def part(self) -> Part | None:
        return self.parts[-1] if self.parts else None

    @property
    def label(self) -> str:
        """What its newest part is called in a trajectory."""
        count = self.lost + len(self.parts)
        return self.name if count < 2 else f"{self.name}#{count}"

    def number(self, part: Part) -> int:
        """What the log calls one of its parts."""
        return self.lost + self.parts.index(part)

    def find(self, number: int) -> Part | None:
        """A part by its number; None if its beginning is lost, and with it the session if nothing newer is known."""
        if number >= self.lost + len(self.parts):
            self.lost = number + 1 - len(self.parts)
            if not self.parts:
                self.ended = self.ended or EXPIRED
        return self.parts[number - self.lost] if number >= self.lost else None

    def status(self) -> dict[str, Any]:
        return {
            "session": self.name, "task": self.task, "ended": self.ended or None, "rewards": self.rewards,
            "parts": [
                {"group_id": p.sample[0], "index": p.sample[1], "purpose": p.purpose, "turns": p.replies,
                 "closed": p.closed or None, "gone": p.gone or None}
                for p in self.parts
            ],
        }  # fmt: skip


class Book:
    """All sessions of a run, by their names and by the samples that they play. ``settled`` are the groups that have ended: with the reason,
    which is empty where their samples were used."""

    def __init__(self, events: Iterable[SessionEvent] = (), settled: Mapping[str, str] | None = None) -> None:
        self.sessions: dict[str, Session] = {}
        self.playing: dict[Sample, tuple[Session, Part]] = {}
        self.labels: dict[str, str] = {}
        """By group, the task that agents have named for it."""
        self.settled: dict[str, str] = dict(settled or {})
        self._members: dict[str, set[str]] = {}
        """By group, the sessions that play in it."""
        self._over: dict[str, None] = {}
        """The sessions of which nothing is needed but that they have been, those that ended first in front."""
        for event in events:
            self.take(event.session, event.what, event.data)
        self._keep_newest()

    def parts_in(self, group: str) -> list[tuple[Session, Part]]:
        """What is played in a group, or was, and is not forgotten."""
        sessions = [self.sessions[name] for name in sorted(self._members.get(group, ()))]
        return [(session, part) for session in sessions for part in session.parts if part.sample[0] == group]

    def ended(self) -> list[tuple[str, str]]:
        """The groups that have ended, of those that sessions play in."""
        return [(group, self.settled[group]) for group in self._members if group in self.settled]

    def settle(self, group: str, why: str) -> None:
        """A group has ended: what was said in it is forgotten with the sessions, once these are over."""
        self.settled[group] = why
        self.labels.pop(group, None)
        for session, part in self.parts_in(group):
            part.settled = True
            self._forget(session)
        self._keep_newest()

    def _forget(self, session: Session) -> None:
        if not session.ended or not all(part.settled for part in session.parts):
            return
        for part in session.parts:
            group = part.sample[0]
            if not part.over:
                part.gone = self.settled.get(group, "")
            part.forget()
            self.playing.pop(part.sample, None)
            members = self._members.get(group, set())
            members.discard(session.name)
            if not members:
                self._members.pop(group, None)
        self._over[session.name] = None

    def _keep_newest(self) -> None:
        for name in list(islice(self._over, max(0, len(self._over) - KEPT))):
            del self._over[name]
            if self.sessions[name].ended:
                del self.sessions[name]
        for group in list(islice(self.settled, max(0, len(self.settled) - KEPT))):
            del self.settled[group]

    def take(self, name: str, what: str, data: Mapping[str, Any]) -> Session:
        """Take an event in: the same one as it happens, and as the log tells it later."""
        session = self.sessions.setdefault(name, Session(name))
        session.last = time.monotonic()
        match what:
            case "bound":
                sample = (data["group"], data["index"])
                part = Part(sample, data["parser"], data["purpose"], data["environment"], tuple(data["mix"]))
                session.lost = max(session.lost, data.get("part", 0) - len(session.parts))
                session.parts.append(part)
                part.settled = sample[0] in self.settled
                self._members.setdefault(sample[0], set()).add(name)
                self._over.pop(name, None)
                session.ended = "" if session.ended == EXPIRED else session.ended
                session.task, session.told = data["task"], 0
                self.playing[sample] = session, part
                if data["open"]:
                    self.labels[sample[0]] = session.task
            # otherwise the part's beginning is lost, or it was freed already
            case "freed" if session.parts and not session.parts[-1].replies:
                part = session.parts.pop()
                group = part.sample[0]
                self.playing.pop(part.sample, None)
                members = self._members.get(group, set())
                if not any(p.sample[0] == group for p in session.parts):
                    members.discard(name)
                if not members:
                    self._members.pop(group, None)
                    self.labels.pop(group, None)
            case "turn":
                if (known := session.find(data["part"])) is not None:
                    known.add(data["turn"])
            case "closed":
                if (known := session.find(data["part"])) is not None:
                    known.closed, known.gone = known.closed or data["why"], known.gone or data["gone"]
            case "ended":
                session.ended = data["why"]
            case "reward":
                session.rewards[data["rewarder"]] = data["value"]
                session.ended = session.ended or "rewarded"
        self._forget(session)
        return session
