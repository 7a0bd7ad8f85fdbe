"""An environment that is a server: reset and step over HTTP, as OpenEnv has them (docs/environments.md has the protocol)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from actors.environment import Turn
from broker.calls import CallRefused, post
from broker.errors import EnvironmentFault, Outage
from broker.messages import ChatMessage, Prompt

AWAY = frozenset({408, 425, 429, 502, 503, 504})
MAX_BYTES = 4 << 20


@dataclass
class HttpEnvironment:
    """Plays at ``url``, which has ``request_timeout`` seconds to answer. ``key_from`` names an environment variable with a bearer token.

    A server that cannot be reached, or says that it is busy, is waited for. One that answers too late or with something else ends the episode
    as an error with the reason, which is never a reward of 0.
    """

    url: str
    request_timeout: float = 5.0
    key_from: str = ""

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise EnvironmentFault(f"url = {self.url!r}; it must begin with http:// or https://")
        if self.request_timeout <= 0:
            raise EnvironmentFault(f"request_timeout = {self.request_timeout}; it must be a number of seconds above 0")
        key = os.environ.get(self.key_from, "")
        if self.key_from and not key:
            raise EnvironmentFault(f"key_from = {self.key_from!r}; there is no such environment variable")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._episode, self._turn = uuid.uuid4().hex, 0

    def open(self, prompt: Prompt, index: int) -> Turn:
        asked = {
            "messages": [m._asdict() for m in prompt.messages], "answer": prompt.answer, "kind": prompt.kind,
            "metadata": dict(prompt.metadata), "group_id": prompt.group_id, "index": index,
        }  # fmt: skip
        return self._ask("reset", {"prompt": asked})

    def step(self, reply: str) -> Turn:
        turn = self._ask("step", {"turn": self._turn, "action": reply})
        self._turn += 1
        return turn

    def _ask(self, what: str, body: Mapping[str, Any]) -> Turn:
        where = f"{self.url.rstrip('/')}/{what}"
        try:
            with httpx.Client(timeout=self.request_timeout, headers=self._headers) as client:
                asked = {"episode": self._episode, **body}
                answer = post(client, where, asked, self.request_timeout, MAX_BYTES)
        except httpx.TimeoutException as error:
            if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
                raise Outage(f"{where} cannot be reached within {self.request_timeout:g} s") from error
            raise EnvironmentFault(f"{where} has not answered within {self.request_timeout:g} s") from error
        except (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
            raise Outage(f"{where} is away: {error}") from error
        except (httpx.HTTPError, CallRefused) as error:
            raise EnvironmentFault(f"{where}: {error}") from error
        if answer.status_code in AWAY:
            raise Outage(f"{where} answers {answer.status_code}: {answer.text[:200]}")
        if answer.status_code != 200:
            raise EnvironmentFault(f"{where} answers {answer.status_code}: {answer.text[:200]}")
        try:
            found = answer.json()
        except (ValueError, RecursionError) as error:
            raise EnvironmentFault(f"{where} answers with no JSON: {answer.text[:200]!r}") from error
        return _turn(found, where)


def _turn(found: Any, where: str) -> Turn:
    """A turn of ``{"observation": TEXT or [{"role", "content"}], "done": BOOL, "reward": NUMBER, "why": TEXT, "tools": [...]}``."""
    if not isinstance(found, dict):
        raise EnvironmentFault(f"{where} answers with {str(found)[:100]!r}; it must be an object")
    seen, done, reward = found.get("observation", ""), found.get("done", False), found.get("reward")
    if type(done) is not bool:
        raise EnvironmentFault(f"{where} answers done = {done!r}; it must be true or false")
    if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float)):
        raise EnvironmentFault(f"{where} answers reward = {str(reward)[:100]!r}; it must be a number, or null")
    said = [{"role": "user", "content": seen}] if isinstance(seen, str) else seen
    if not isinstance(said, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in said
    ):
        raise EnvironmentFault(
            f"{where} answers observation = {str(seen)[:100]!r}; it must be a text, or messages with role and content"
        )
    tools = found.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        raise EnvironmentFault(f"{where} answers tools = {str(tools)[:100]!r}; they must be a list of schemas")
    messages = tuple(ChatMessage(m["role"], m["content"]) for m in said if m["content"] or len(said) > 1)
    return Turn(messages, done, None if reward is None else float(reward), str(found.get("why") or ""), tuple(tools))
