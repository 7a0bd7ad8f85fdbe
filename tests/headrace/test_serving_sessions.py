"""Sessions as the log tells them, whole and from where retention has left it."""

from __future__ import annotations

from typing import Any

import pytest

from broker.messages import SessionEvent
from headrace.serving.sessions import EXPIRED, Book


def bound(session: str, index: int, **more: Any) -> SessionEvent:
    data = {
        "group": "g@0", "index": index, "task": "t", "open": True, "parser": "hermes", "purpose": "train", "environment": "agents",
        "mix": ["agent"], **more,
    }  # fmt: skip
    return SessionEvent(session, "bound", data)


def turn(session: str, part: int, said: str) -> SessionEvent:
    given = {
        "turns": [["user", "go on"], ["assistant", said]], "tools": [], "finish": "stop", "text": said, "versions": [],
        "segments": [["prompt", 0, 5, False], ["assistant", 5, 8, True]],
    }  # fmt: skip
    return SessionEvent(session, "turn", {"part": part, "turn": given})


def closed(session: str, part: int) -> SessionEvent:
    return SessionEvent(session, "closed", {"part": part, "why": "edited", "gone": ""})


EVENTS = [
    bound("edits", 0, part=0), bound("silent", 1, part=0), turn("edits", 0, "one"), turn("edits", 0, "two"), closed("edits", 0),
    bound("edits", 2, part=1), SessionEvent("silent", "freed"), SessionEvent("silent", "ended", {"why": "idle"}),
    turn("edits", 1, "three"), closed("edits", 1), bound("edits", 3, part=2), turn("edits", 2, "four"), turn("edits", 2, "five"),
    SessionEvent("edits", "ended", {"why": "rewarded"}), SessionEvent("edits", "reward", {"rewarder": "agent", "value": 1.0}),
]  # fmt: skip
"""Two sessions: one edits its past twice, the other never speaks."""


@pytest.mark.parametrize("numbered", [True, False], ids=["parts with numbers", "of older runs"])
@pytest.mark.parametrize("begin", range(len(EVENTS) + 1))
def test_a_book_opens_wherever_retention_lets_the_log_begin(begin: int, numbered: bool) -> None:
    events = EVENTS
    if not numbered:
        events = [SessionEvent(e.session, e.what, {k: v for k, v in e.data.items() if e.what != "bound" or k != "part"}) for e in EVENTS]  # fmt: skip
    book = Book(events[begin:])
    whole = Book(events)
    assert all(s.ended for s in book.sessions.values()), "what has ended stays ended"
    for sample, (_, part) in book.playing.items():
        assert part == whole.playing[sample][1], "what is known of a part is all of it"


def test_a_session_whose_beginning_has_expired_has_ended() -> None:
    book = Book([turn("s", 0, "one"), turn("s", 0, "two")])
    assert book.sessions["s"].ended == EXPIRED and not book.sessions["s"].parts and not book.playing


def test_a_session_goes_on_in_a_part_whose_beginning_is_there() -> None:
    book = Book([turn("s", 0, "one"), closed("s", 0), bound("s", 1, part=1), turn("s", 1, "two")])
    session = book.sessions["s"]
    (part,) = session.parts
    assert not session.ended and [t["text"] for t in part.turns] == ["two"]
    assert session.number(part) == 1 and session.label == "s#2"
    book.take("s", "turn", {"part": session.number(part), "turn": turn("s", 1, "three").data["turn"]})
    assert [t["text"] for t in part.turns] == ["two", "three"]
