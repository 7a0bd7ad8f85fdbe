"""Follows the log for groups that the learner has given up, so that nobody plays them any longer."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from broker.errors import HeadraceError, LogError
from broker.log import Log
from broker.messages import Manifest
from broker.topics import Topics
from headrace.reading.heads import head_of
from headrace.reading.records import read

log_ = logging.getLogger("serve")
LOOK_SECONDS = 1.0


async def follow(log: Log, topics: Topics, drop: Callable[[str, str], Awaitable[None]]) -> None:
    """Tell ``drop`` of each group that a manifest drops, with the reason; for ever. A group that it could not drop is told again."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "fates") as thread:
        reader = await loop.run_in_executor(thread, log.reader, topics.steps)

        def look() -> list[tuple[str, str]]:
            try:
                found = [read(r) for r in reader.poll(256, 0.0) if head_of(r).type == Manifest.TYPE]
            except (LogError, OSError):  # it is away; the journal says so
                return []
            return [(d.group_id, d.reason) for m in found if isinstance(m, Manifest) for d in m.dropped]

        waiting: deque[tuple[str, str]] = deque()
        while True:
            waiting += await loop.run_in_executor(thread, look)
            busy = bool(waiting)
            try:
                while waiting:
                    await drop(*waiting[0])
                    waiting.popleft()
            except (HeadraceError, OSError) as error:
                log_.warning("group %s cannot be given up yet: %s", waiting[0][0], error)
                busy = False
            if not busy:
                await asyncio.sleep(LOOK_SECONDS)
