"""Runs in the child process of a room: the environments of many episodes, one instance each."""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack

from actors.environment import Environment, pack
from actors.room import LOST
from broker import plugins
from broker.errors import EnvironmentFault
from broker.faults import kind_of, told
from broker.messages import Prompt, decode

STACK_BYTES = 1 << 20
ARENA_MAX = -8  # mallopt's name for it


class Host:
    """Answers calls; each episode has an instance that ``make`` gives."""

    def __init__(self, make: Callable[[], Environment]) -> None:
        self._make = make
        self._episodes: dict[int, Environment] = {}

    def answer(self, call: dict[str, Any]) -> Any:
        ticket = call["ticket"]
        if call["what"] == "close":
            closing = getattr(self._episodes.pop(ticket, None), "close", None)
            if callable(closing):
                with contextlib.suppress(Exception, SystemExit):  # the episode is over, so this is no failure of it
                    closing()
            return None
        if call["what"] == "open":
            prompt = decode(call["prompt"])
            assert isinstance(prompt, Prompt)
            episode = self._episodes[ticket] = self._make()
            return pack(episode.open(prompt, call["index"]))
        found = self._episodes.get(ticket)
        return LOST if found is None else pack(found.step(call["reply"]))


class Several:
    """Has up to ``threads`` calls answered at the same time; ``collect`` gives those that have been."""

    def __init__(self, host: Host, threads: int) -> None:
        threading.stack_size(STACK_BYTES)
        # the memory bound is one of addresses, and every thread's arena would take 64 MiB of them
        ctypes.CDLL(None).mallopt(ARENA_MAX, 2)
        self._host, self._pool = host, ThreadPoolExecutor(threads, "environment")
        self._done: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()

    def answer(self, call: dict[str, Any]) -> Any:
        if call["what"] == "collect":
            return self._collect(call["seconds"])
        if call["what"] == "close":
            return self._host.answer(call)
        self._pool.submit(self._work, call)
        return None

    def _work(self, call: dict[str, Any]) -> None:
        try:
            said = {"result": self._host.answer(call)}
        except (Exception, SystemExit) as error:  # the plug-in boundary
            said = {"error": told(error), "kind": kind_of(error)}
        self._done.put((call["ticket"], said))

    def _collect(self, seconds: float) -> list[tuple[int, dict[str, Any]]]:
        found = []
        try:
            found.append(self._done.get(timeout=seconds))
            while True:
                found.append(self._done.get_nowait())
        except queue.Empty:
            return found


def host(options: dict[str, Any]) -> Any:
    """The handler of a child. Raises EnvironmentFault for a class that is no environment."""
    base, where = Path(options["base"]), f"[environments.{options['name']}]"
    kind = plugins.load(options["use"], base, where)
    given = {"base": base} if "base" in (plugins.option_names(kind) or ()) else {}  # where its own files lie
    make = lambda: plugins.make(kind, options["options"], f"{where} use = {options['use']!r}", **given)  # noqa: E731
    for method in ("open", "step"):
        if not callable(getattr(make(), method, None)):
            raise EnvironmentFault(
                f"{options['use']} has no method {method}; an environment has open(prompt, index) and step(reply)"
            )
    one = Host(make)
    answer = Several(one, options["threads"]).answer if options["threads"] else one.answer
    return lambda payload: answer(msgpack.unpackb(payload))
