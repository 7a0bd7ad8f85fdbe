"""The sessions of outside agents: their durable records, and how actors find the server that agents connect to.

An agent's session is one episode, or several *parts* if the agent edits its past. Each turn is written to the topic ``RUN.sessions``,
with its tokens, before the agent gets the reply, so that another actor can continue an episode whose actor was killed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from broker.wire import Json, mapping, number, require, text

AGENTS = "actors.agents:Agents"
"""The environment of outside agents, as named in the run file."""
OPEN = "open task"
"""The kind of a prompt that is no question, but a place for a task that an agent brings."""
FILE = "serve.json"
ACTORS = "/v1/headrace/actors"
"""The URL path that actors connect to."""
NAME = re.compile(r"[A-Za-z0-9._:@+-]{1,128}")
EVENTS = ("bound", "turn", "closed", "ended", "reward", "freed")


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """Something happened in ``session``: a part was ``bound`` to a sample, had a ``turn`` or was ``closed``; the session ``ended``, got
    a ``reward``, or was ``freed`` from a sample that it had not begun. ``data`` holds the details."""

    TYPE: ClassVar[str] = "session"
    schema: ClassVar[int] = 2
    session: str
    what: str
    data: Mapping[str, Json] = field(default_factory=dict)
    created: float = 0.0

    def __post_init__(self) -> None:
        require(bool(NAME.fullmatch(self.session)), "session", self.session, f"a name like {NAME.pattern}")
        require(self.what in EVENTS, "what", self.what, f"one of {EVENTS}")

    def pack(self) -> dict[str, Json]:
        return {"session": self.session, "what": self.what, "data": dict(self.data), "created": self.created}

    @classmethod
    def unpack(cls, wire: Mapping[str, Json]) -> SessionEvent:
        return cls(text(wire["session"]), text(wire["what"]), mapping(wire["data"]), number(wire["created"]))


@dataclass(frozen=True, slots=True)
class Door:
    """``RUN/serve.json``: the URL of the server, and the token by which it recognises the run's own actors."""

    url: str
    token: str

    @classmethod
    def find(cls, directory: Path) -> Door | None:
        """The server of the run in ``directory``; None if none was ever announced."""
        try:
            found = json.loads((directory / FILE).read_text())
            return cls(str(found["url"]), str(found["token"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def announce(self, directory: Path) -> None:
        """Write the file atomically, readable by this user only."""
        temporary = directory / f".{FILE}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump({"url": self.url, "token": self.token}, file)
        temporary.replace(directory / FILE)
