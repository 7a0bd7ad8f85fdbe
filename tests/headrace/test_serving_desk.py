"""The door's housekeeping goes on after a write that the log has refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from patience import HANG

from broker.errors import LogFull
from broker.messages import Dropped, Evaluation, GroupRef, Manifest, Position, SessionEvent, decode, encode
from broker.topics import Topics
from headrace.serving import desk as desks
from headrace.serving import fates, sessions
from headrace.serving.actors import ENDED
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
        return fates.follow(log, TOPICS, {}, [], desk.actors.ended)

    keep_house(log, book, house, lambda: all(part.gone for _, part in book.playing.values()))
    assert sorted(e.session for e in events(log)) == ["a", "b", "c"]


def manifest(step: int, *groups: str, dropped: tuple[str, ...] = ()) -> bytes:
    refs = tuple(GroupRef(group, Position(0, 0), ()) for group in groups)
    return encode(
        Manifest(
            step,
            0,
            "step" if refs else "close",
            refs,
            dropped=tuple(Dropped(g, "stale", 0) for g in dropped),
            created=time.time(),
        )
    )


def evaluation(*groups: str, dropped: tuple[Dropped, ...]) -> bytes:
    return encode(Evaluation("e", 1, 0, 2, 1, 0.5, (0.0, 1.0), 0.5, (0.0, 1.0), (1, 1), 3.0, groups, dropped))


def test_what_was_said_in_a_group_is_forgotten_when_group_and_session_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fates, "LOOK_SECONDS", 0.01)
    log, book = FullLog(), three_sessions()
    book.take("a", "ended", {"why": "finished"})
    producer = log.producer()
    producer.send(TOPICS.steps, b"0", manifest(1, "g-0@0"))
    producer.send(TOPICS.steps, b"0", evaluation("g-2@0", "g-1@0", dropped=(Dropped("g-1@0", "incomplete", 0),)))
    keep_house(
        log, book, lambda desk: fates.follow(log, TOPICS, {}, [], desk.actors.ended), lambda: len(book.settled) == 3
    )
    assert [(e.session, e.data["gone"]) for e in events(log)] == [("c", ENDED), ("b", "incomplete")], (
        "who still plays is told"
    )
    (part,) = book.sessions["a"].parts
    assert (part.turns, part.talk, part.replies, part.gone) == ([], [], 1, ""), "a vote that comes late has its sample"
    assert ("g-0@0", 0) not in book.playing and ("g-2@0", 0) in book.playing
    book.take("c", "ended", {"why": "finished"})
    assert not book.playing.keys() & {("g-0@0", 0), ("g-2@0", 0)} and book.sessions["c"].parts[0].gone == ENDED


def test_a_door_that_is_opened_late_holds_only_what_goes_on() -> None:
    log, whole = FullLog(), three_sessions()
    producer = log.producer()
    producer.send(TOPICS.steps, b"0", manifest(1, "g-0@0"))
    producer.send(TOPICS.steps, b"0", manifest(2, dropped=("g-2@0",)))
    told = [
        SessionEvent(name, what, data)
        for name, (_, part) in zip("abc", whole.playing.values(), strict=True)
        for what, data in (
            ("bound", {"group": part.sample[0], "index": 0, "task": "", "open": True, "parser": "hermes", "purpose": "train", "environment": "agents", "mix": ["agent"]}),
            *(("turn", {"part": 0, "turn": turn}) for turn in part.turns),
        )
    ]  # fmt: skip
    ends = log.ends(TOPICS.steps)
    producer.send(TOPICS.steps, b"0", manifest(3, "g-1@0"))
    settled = fates.ended_before(log, TOPICS, ends)
    assert settled == {"g-0@0": "", "g-2@0": "stale"}
    book = Book([*told, SessionEvent("a", "ended", {"why": "finished"})], settled)
    assert {name for _, (s, _) in book.playing.items() for name in [s.name]} == {"b", "c"}
    assert book.ended() == [("g-2@0", "stale")], "what a session that goes on must be told"
    assert book.sessions["a"].ended, "and its name is not given again"


def test_the_newest_of_what_is_over_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "KEPT", 2)
    book = three_sessions()
    for name in ("a", "b", "c"):
        book.take(name, "ended", {"why": "finished"})
    for index in (1, 0, 2):
        book.settle(f"g-{index}@0", "")
    assert list(book.sessions) == ["a", "c"] and list(book.settled) == ["g-0@0", "g-2@0"]
    assert not book.playing and not book.ended()
