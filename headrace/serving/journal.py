"""Writes what must be durable before it is answered: turns and other events of sessions, and votes. Concurrent writes share a flush."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from broker.errors import HeadraceError, LogUnavailable
from broker.log import Log
from broker.messages import SessionEvent, Vote, encode
from broker.topics import Topics

log_ = logging.getLogger("serve")
RETRY_SECONDS = 1.0
Entry = tuple[str, bytes, bytes]


class Journal:
    """Driven by one event loop; the log is used by one thread beside it."""

    def __init__(self, log: Log, topics: Topics) -> None:
        self._topics, self._log = topics, log
        self._thread = ThreadPoolExecutor(1, "journal")
        self._producer: Any = None
        self._waiting: list[tuple[list[Entry], asyncio.Future[None]]] = []
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def tell(self, session: str, what: str, **data: Any) -> None:
        """Returns when the event is durable; while the log is away it waits."""
        await self._write([self._entry(SessionEvent(session, what, data, time.time()))])

    async def vote(self, votes: Sequence[Vote], session: str, data: Mapping[str, Any]) -> None:
        """Votes first, then the event of the reward: who has heard nothing says it again, and the first vote holds."""
        entries = [(self._topics.rewards, v.group_id.encode(), encode(v)) for v in votes]
        await self._write([*entries, self._entry(SessionEvent(session, "reward", data, time.time()))])

    def _entry(self, event: SessionEvent) -> Entry:
        return self._topics.sessions, event.session.encode(), encode(event)

    async def _write(self, entries: list[Entry]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entries, done))
        self._more.set()
        await asyncio.shield(done)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._more.wait()
            self._more.clear()
            batch, self._waiting = self._waiting, []
            entries = [entry for several, _ in batch for entry in several]
            while True:
                try:
                    await loop.run_in_executor(self._thread, self._flush, entries)
                    break
                except LogUnavailable as error:
                    log_.warning("%d turns and votes wait for the log: %s", len(batch), error)
                    await asyncio.sleep(RETRY_SECONDS)
                except (
                    HeadraceError,
                    OSError,
                ) as error:  # a full disk, or a log that refuses: everybody who waits hears why
                    for _, done in batch:
                        done.set_exception(error)
                    batch = []
                    break
            for _, done in batch:
                done.set_result(None)

    def _flush(self, entries: list[Entry]) -> None:
        if self._producer is None:
            self._producer = self._log.producer()
        try:
            for topic, key, value in entries:
                self._producer.send(topic, key, value)
            self._producer.flush()
        except (HeadraceError, OSError):
            with contextlib.suppress(HeadraceError, OSError):
                self._producer.close()
            self._producer = None
            raise

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=True)
        if self._producer is not None:
            self._producer.close()
