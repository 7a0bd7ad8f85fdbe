"""Rooms: what happens in one episode of a process that several share, and what the others notice of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from patience import until

from actors.config import EnvironmentTable
from actors.rooms import Rooms
from broker.messages import ChatMessage, Prompt

PROMPT = Prompt("g@0", (ChatMessage("user", "q"),), 2, environment="door")
DOOR = '''
import time
from dataclasses import dataclass
from pathlib import Path
from actors.environment import Turn, over


@dataclass
class Door:
    """Its step waits until the file `go` is there; closing it fails."""

    folder: str

    def open(self, prompt, index):
        return Turn()

    def step(self, reply):
        while not (Path(self.folder) / "go").exists():
            time.sleep(0.01)
        return over(1.0)

    def close(self):
        (Path(self.folder) / "closed").touch()
        raise OSError("it is stuck")
'''


@pytest.mark.parametrize("threads", [1, 2])
def test_an_environment_that_fails_to_close_harms_nobody(tmp_path: Path, threads: int) -> None:
    (tmp_path / "door.py").write_text(DOOR)
    table = EnvironmentTable(use="door.py:Door", timeout=60.0, processes=1, threads=threads, folder=str(tmp_path))  # type: ignore[call-arg]
    rooms = Rooms({"door": table}, tmp_path)
    one, two = rooms.open(PROMPT, 0), rooms.open(PROMPT, 1)
    opened = []
    until(lambda: opened.extend(rooms.ready()) or len(opened) == 2)
    if threads > 1:  # the call of another episode is under way
        rooms.step(two, "hello")
    rooms.forget(one)
    until((tmp_path / "closed").exists)
    (tmp_path / "go").touch()
    if threads == 1:
        rooms.step(two, "hello")
    answers = []
    until(lambda: answers.extend(rooms.ready()) or answers)
    assert [(a.ticket, a.why) for a in answers] == [(two, "")]
    assert answers[0].turn is not None and answers[0].turn.outcome == 1.0
    rooms.close()
