"""The door's housekeeping goes on after a write that the log has refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from patience import HANG

from broker.errors import LogFull
from broker.messages import Dropped, Manifest, SessionEvent, decode, encode
from broker.topics import Topics
from headrace.serving import desk as desks
from headrace.serving import fates
from headrace.serving.desk import Desk
from headrace.serving.forms import ApiError
from headrace.serving.journal import Journal
from headrace.serving.sessions import Book
from headrace.simulation.memory import MemoryLog, MemoryProducer

TOPICS = Topics("duty")


class FullLog(MemoryLog):
    """Has no space for the records of these numbers, counted from 0."""

    def __init__(self, *refused: int) -> None:
        super().__init__(time.time)
        self.create([*TOPICS.specs(), TOPICS.sessions_spec()])
        self.refused, self.count = set(refused), 0

    def producer(self) -> MemoryProducer:
        return FullProducer(self)


class FullProducer(MemoryProducer):
    def __init__(self, log: FullLog) -> None:
        super().__init__(log)
        self._full = log

    def send(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        number, self._full.count = self._full.count, self._full.count + 1
        if number in self._full.refused:
            raise LogFull("no space")
        super().send(topic, key, value, partition)


def three_sessions() -> Book:
    """Two that have spoken and, between them, one that has not."""
    given = {
        "turns": [["user", "go on"], ["assistant", "yes"]], "tools": [], "finish": "stop", "text": "yes", "versions": [],
        "segments": [["prompt", 0, 5, False], ["assistant", 5, 8, True]],
    }  # fmt: skip
    book = Book()
    for index, name in enumerate(("a", "b", "c")):
        book.take(name, "bound", {"group": f"g-{index}@0", "index": 0, "task": "", "open": True, "parser": "hermes", "purpose": "train", "environment": "agents", "mix": ["agent"]})  # fmt: skip
        if name != "b":
            book.take(name, "turn", {"part": 0, "turn": given})
    return book


def keep_house(log: FullLog, book: Book, house: Callable[[Desk], Awaitable[None]], done: Callable[[], bool]) -> None:
    """Run the desk's ``house`` on the log until something is done, or for a minute."""

    async def run() -> None:
        journal = Journal(log, TOPICS)
        journal.start()
        desk = Desk(book, journal, {"agents": "hermes"}, {"agents": 0.0}, frozenset({"agent"}), 5.0)
        task = asyncio.ensure_future(house(desk))
        deadline = time.monotonic() + HANG
        while not done() and not task.done():
            assert time.monotonic() < deadline, "it has not happened"
            await asyncio.sleep(0.01)
        assert not task.done() or task.exception() is None, task.exception()
        task.cancel()
        await journal.close()

    asyncio.run(run())


def events(log: MemoryLog) -> list[SessionEvent]:
    found = [decode(r.value) for r in log.of(TOPICS.sessions)[0]]
    return [m for m in found if isinstance(m, SessionEvent)]


@pytest.mark.parametrize("refused", range(4))
def test_silent_sessions_end_though_the_log_has_refused_a_write(refused: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "LOOK_SECONDS", 0.01)
    log, book = FullLog(refused), three_sessions()
    keep_house(log, book, lambda desk: desk.end_idle(), lambda: all(s.ended for s in book.sessions.values()))
    assert sorted(e.session for e in events(log) if e.what == "ended") == ["a", "b", "c"]
    again = three_sessions()
    for event in events(log):
        again.take(event.session, event.what, event.data)
    assert {n: (s.ended, len(s.parts)) for n, s in again.sessions.items()} == {"a": ("idle", 1), "b": ("idle", 0), "c": ("idle", 1)}  # fmt: skip


def test_a_vote_on_a_session_that_is_forgotten_says_why_it_is_refused() -> None:
    book = Book([SessionEvent("old", "closed", {"part": 0, "why": "stop", "gone": ""})])
    desk = Desk(book, Journal(FullLog(), TOPICS), {}, {}, frozenset({"agent"}), 5.0)
    with pytest.raises(ApiError, match=r"'old': it has no sample to vote on: .* older than \[broker\] retention_hours"):
        asyncio.run(desk.reward(book.sessions["old"], "", 1.0, ""))


def test_groups_are_given_up_though_the_log_has_refused_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fates, "LOOK_SECONDS", 0.01)
    log, book = FullLog(), three_sessions()
    dropped = tuple(Dropped(f"g-{i}@0", "incomplete", 0) for i in range(3))
    producer = log.producer()
    producer.send(TOPICS.steps, b"0", b"no record")
    producer.send(TOPICS.steps, b"0", encode(Manifest(0, 0, "close", dropped=dropped, created=time.time())))
    log.refused = {log.count}

    def house(desk: Desk) -> Any:
        return fates.follow(log, TOPICS, desk.actors.drop)

    keep_house(log, book, house, lambda: all(part.gone for _, part in book.playing.values()))
    assert sorted(e.session for e in events(log)) == ["a", "b", "c"]
