"""Calls a server over HTTP and handles its failures: retries with back-off and jitter, a rate limit, a circuit breaker.

A server that is away, overloaded or broken (no connection, no answer in time, status 408, 425, 429, 5xx) is tried again, and then raises
``Outage``: the sample waits. A server that rejects the request for good (any other status, an answer that is no JSON) raises ``CallRefused``:
an error of this sample. After several outages in a row the circuit opens: for a while, no requests are sent.
"""

from __future__ import annotations

import email.utils
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from broker.errors import HeadraceError, MessageError, Outage

TRANSIENT = frozenset({408, 425, 429, *range(500, 600)})
LONGEST_PAUSE = 30.0
MOST_BYTES = 1 << 26  # largest answer


class CallRefused(HeadraceError):
    """The server answered, but the answer is unusable."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The complete answer of a server."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """Raises ValueError or RecursionError."""
        return json.loads(self.content)


def post(client: httpx.Client, url: str, body: Any, seconds: float, most: int = MOST_BYTES) -> Answer:
    """Post JSON and read the answer, for about ``seconds`` in all: the client's own time-out bounds each part of it, and a server that sends
    a byte at a time would never meet that. Raises CallRefused for more than ``most`` bytes, httpx.HTTPError for the rest."""
    until, content = time.monotonic() + seconds, bytearray()
    with client.stream("POST", url, json=body) as answer:
        for part in answer.iter_bytes():
            content += part
            if len(content) > most:
                raise CallRefused(f"{answer.url} answers with more than {most} bytes")
            if time.monotonic() > until:
                raise httpx.ReadTimeout(f"the answer has not come whole within {seconds:g} s")
        return Answer(answer.status_code, answer.headers, bytes(content))


class _Away(HeadraceError):
    """One attempt failed in a way that may pass; ``pause`` is what the server asks for, in seconds."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.pause = pause


@dataclass(frozen=True, kw_only=True)
class Server:
    """The address of a judging server and how patiently it is called: the options that all rewarders over HTTP share.

    ``url`` without the path of the method. ``key_from`` names the environment variable that holds the API key. ``request_timeout`` in
    seconds bounds one attempt, ``tries`` the attempts, between which it waits ``backoff`` seconds, doubled each time, times a random share
    (a ``Retry-After`` of the server goes before). ``rate`` bounds the requests a second of this process (0: as many as come). The circuit
    opens after ``trip`` outages in a row, for ``cool`` seconds. The worker's own time-out must leave room for all tries.
    """

    url: str
    key_from: str = ""
    request_timeout: float = 30.0
    tries: int = 3
    backoff: float = 0.5
    rate: float = 0.0
    trip: int = 3
    cool: float = 10.0

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise MessageError(f"url = {self.url!r}; it must begin with http:// or https://")
        for name, value, least in (
            ("request_timeout", self.request_timeout, 1e-3),
            ("tries", self.tries, 1),
            ("trip", self.trip, 1),
        ):
            if value < least:
                raise MessageError(f"{name} = {value}; it must be at least {least:g}")
        for name, value in (("backoff", self.backoff), ("rate", self.rate), ("cool", self.cool)):
            if value < 0:
                raise MessageError(f"{name} = {value}; it must not be negative")
        if self.key_from and not os.environ.get(self.key_from):
            raise MessageError(f"key_from = {self.key_from!r}; there is no such environment variable")

    @cached_property
    def caller(self) -> Caller:
        """The shared caller of this server: its rate limit and circuit apply to all calls of this process."""
        return Caller(self)


@dataclass(frozen=True, kw_only=True)
class ChatServer(Server):
    """An OpenAI-compatible server (``url`` with ``/v1``), the ``model`` that is asked there, and how it samples; ``extra`` is passed on in
    the request."""

    model: str
    temperature: float = 0.0
    max_tokens: int = 1024
    extra: dict[str, Any] | None = None

    def reply(self, rules: str, quoted: Sequence[tuple[str, str]], mark: str) -> str:
        """The reply to ``rules`` about texts by name, each between lines with ``mark``. Raises Outage or CallRefused."""
        shown = "\n\n".join(f"[{name} {mark}]\n{text}\n[end of {name} {mark}]" for name, text in quoted)
        body = {
            "model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens, **(self.extra or {}),
            "messages": [{"role": "system", "content": rules}, {"role": "user", "content": sayable(shown)}],
        }  # fmt: skip
        answer = self.caller.post("/chat/completions", body)
        try:
            return str(answer["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            raise CallRefused(f"{self.url} answers without choices[0].message.content: {str(answer)[:200]}") from error


class Caller:
    """Posts JSON to a server. Safe to be used by several threads."""

    def __init__(self, server: Server) -> None:
        key = os.environ.get(server.key_from, "") if server.key_from else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._server = server
        self._client = httpx.Client(base_url=server.url.rstrip("/"), headers=headers, timeout=server.request_timeout)
        self._pace = Pace(server.rate)
        self._circuit = Circuit(server.url, server.trip, server.cool)

    def post(self, path: str, body: Any) -> Any:
        """The server's answer, parsed as JSON. Raises Outage or CallRefused."""
        server = self._server
        self._circuit.check()
        retrying = Retrying(
            stop=stop_after_attempt(server.tries),
            wait=_pause(server.backoff),
            retry=retry_if_exception_type(_Away),
            reraise=True,
        )
        try:
            answer = retrying(self._once, path, body)
        except _Away as error:
            self._circuit.failed(str(error))
            raise Outage(f"{server.url} is away: {error} ({server.tries} tries)") from error
        except CallRefused:
            self._circuit.worked()
            raise
        self._circuit.worked()
        return answer

    def _once(self, path: str, body: Any) -> Any:
        self._pace.wait()
        try:
            answer = post(self._client, path, body, self._server.request_timeout)
        except httpx.TransportError as error:
            raise _Away(f"{type(error).__name__}: {error}") from error
        except httpx.HTTPError as error:
            raise CallRefused(f"{self._server.url}{path}: {error}") from error
        if answer.status_code in TRANSIENT:
            raise _Away(f"status {answer.status_code}: {answer.text[:200]}", _retry_after(answer))
        if answer.status_code != 200:
            raise CallRefused(f"{self._server.url}{path} answers {answer.status_code}: {answer.text[:200]}")
        try:
            return answer.json()
        except (ValueError, RecursionError) as error:
            raise CallRefused(f"{self._server.url}{path} answers with no JSON: {answer.text[:200]!r}") from error


class Pace:
    """Lets ``rate`` callers per second pass, evenly spaced; 0: no limit."""

    def __init__(self, rate: float) -> None:
        self._gap = 1 / rate if rate else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        time.sleep(turn - now)


class Circuit:
    """Open after ``trip`` failures in a row: for ``cool`` seconds every call fails at once, then one may try."""

    def __init__(self, name: str, trip: int, cool: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._trip, self._cool, self._clock = name, trip, cool, clock
        self._failures, self._until, self._why = 0, 0.0, ""
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raises Outage while the circuit is open."""
        with self._lock:
            left = self._until - self._clock()
            if self._failures < self._trip:
                return
            if left > 0:
                raise Outage(f"{self._name} is away, and is asked again in {left:.1f} s: {self._why}")
            self._until = self._clock() + self._cool  # other calls wait for the result of this one

    def failed(self, why: str) -> None:
        with self._lock:
            self._failures, self._why = self._failures + 1, why
            self._until = self._clock() + self._cool

    def worked(self) -> None:
        with self._lock:
            self._failures = 0


def sayable(text: str) -> str:
    """``text`` without what JSON cannot carry (lone surrogates)."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _pause(backoff: float) -> Callable[[RetryCallState], float]:
    """Seconds until the next attempt: what the server asks for, else a random share of a doubling back-off ("full jitter")."""
    jittered = wait_random_exponential(multiplier=backoff, max=LONGEST_PAUSE)

    def pause(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.pause if isinstance(error, _Away) else 0.0
        return asked or jittered(state)

    return pause


def _retry_after(answer: Answer) -> float:
    """The value of ``Retry-After`` in seconds, at most ``LONGEST_PAUSE``; 0 if there is none."""
    said = answer.headers.get("Retry-After", "")
    if not said:
        return 0.0
    try:
        seconds = (
            float(said)
            if said.replace(".", "", 1).isdigit()
            else email.utils.parsedate_to_datetime(said).timestamp() - time.time()
        )
    except (TypeError, ValueError):
        return 0.0
    return min(LONGEST_PAUSE, max(0.0, seconds))
