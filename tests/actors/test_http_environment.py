"""An environment that is a server of its own, in all the states that servers get into."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from patience import until

from actors.adapters.http import HttpEnvironment
from actors.config import EnvironmentTable
from actors.room import Said
from actors.rooms import Rooms
from broker.errors import EnvironmentFault
from broker.messages import ChatMessage, Prompt

SERVER = Path(__file__).with_name("environment_server.py")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def server(port: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, str(SERVER), str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    number = free_port()
    with server(number):
        yield number


@pytest.fixture
def rooms(port: int, tmp_path: Path) -> Iterator[Rooms]:
    made = rooms_at(port, tmp_path)
    yield made
    made.close()


def rooms_at(port: int, base: Path) -> Rooms:
    options = {"use": "actors.adapters.http:HttpEnvironment", "url": f"http://127.0.0.1:{port}", "timeout": 30.0}
    table = EnvironmentTable.model_validate({**options, "processes": 1})
    return Rooms({"game": table}, base)


def begin(rooms: Rooms, how: str, answer: int = 2, index: int = 0) -> int:
    return rooms.open(Prompt("g@0", (ChatMessage("user", how),), 4, answer=str(answer), environment="game"), index)


def hear(rooms: Rooms) -> Said:
    found = until(rooms.ready)
    (said,) = found
    return said


@pytest.mark.long
@pytest.mark.parametrize("how", ["plain", "slow"])
def test_an_episode_is_played_over_http(rooms: Rooms, how: str) -> None:
    ticket = begin(rooms, how, index=3)
    opened = hear(rooms).turn
    assert opened is not None and opened.messages == (ChatMessage("user", "sample 3"),) and opened.outcome == 0.0
    rooms.step(ticket, "one")
    middle = hear(rooms).turn
    assert middle is not None and (middle.messages[0].content, middle.over) == ("1 left", False)
    rooms.step(ticket, "two")
    end = hear(rooms).turn
    assert end is not None and end.over and end.outcome == 1.0


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("ill", "/step answers 500"),
        ("garbage", "/step answers with no JSON: '<html>hello</html>'"),
        ("odd", "/step answers observation = '7'; it must be a text, or messages"),
        ("endless", "gave outcome inf; it must be a finite number"),
        ("digits", "int too large to convert to float"),
        ("flood", "/step answers with more than 4194304 bytes"),
    ],
)
def test_a_bad_answer_is_an_error_of_its_episode_with_the_reason(rooms: Rooms, how: str, reason: str) -> None:
    bad, good = begin(rooms, how), None
    assert hear(rooms).turn is not None
    rooms.step(bad, "one")
    said = hear(rooms)
    assert said.turn is None and reason in said.why and not said.lost
    good = begin(rooms, "plain")
    assert hear(rooms).turn is not None
    rooms.step(good, "one")
    assert hear(rooms).turn is not None, "and others play on"


@pytest.mark.long
@pytest.mark.parametrize("how", ["hang", "trickle"])
def test_a_server_that_hangs_or_never_ends_has_its_time_and_no_more(port: int, how: str) -> None:
    it = HttpEnvironment(f"http://127.0.0.1:{port}", request_timeout=0.3)
    it.open(Prompt("g@0", (ChatMessage("user", how),), 1, answer="2"), 0)
    with pytest.raises(EnvironmentFault, match=r"/step has not answered within 0.3 s"):
        it.step("one")


@pytest.mark.long
def test_a_server_that_is_away_or_busy_is_an_outage_and_no_failure(tmp_path: Path) -> None:
    number = free_port()
    rooms = rooms_at(number, tmp_path)
    begin(rooms, "plain", answer=1)
    refused = hear(rooms)
    assert refused.away and "/reset is away" in refused.why
    with server(number) as process:
        ticket = begin(rooms, "busy", answer=1)
        assert hear(rooms).turn is not None
        rooms.step(ticket, "one")
        busy = hear(rooms)
        assert busy.away and "/step answers 503" in busy.why
        ticket = begin(rooms, "plain", answer=1)
        assert hear(rooms).turn is not None
        process.kill()
        process.wait()
        rooms.step(ticket, "one")
        gone = hear(rooms)
        assert gone.away and "/step is away" in gone.why
    rooms.close()


def test_options_say_what_is_wrong_with_them() -> None:
    with pytest.raises(EnvironmentFault, match="url = 'localhost:80'; it must begin with http://"):
        HttpEnvironment("localhost:80")
    with pytest.raises(EnvironmentFault, match="key_from = 'NOBODYS_KEY'; there is no such"):
        HttpEnvironment("http://127.0.0.1:1", key_from="NOBODYS_KEY")
