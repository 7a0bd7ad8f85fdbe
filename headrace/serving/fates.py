"""Follows the log for groups that the learner has given up, so that nobody plays them any longer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from broker.errors import LogError
from broker.log import Log
from broker.messages import Manifest, decode
from broker.topics import Topics
from headrace.reading.heads import head_of

LOOK_SECONDS = 1.0


async def follow(log: Log, topics: Topics, drop: Callable[[str, str], Awaitable[None]]) -> None:
    """Tell ``drop`` of each group that a manifest drops, with the reason; for ever."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "fates") as thread:
        reader = await loop.run_in_executor(thread, log.reader, topics.steps)

        def look() -> list[tuple[str, str]]:
            try:
                found = [decode(r.value) for r in reader.poll(256, 0.0) if head_of(r).type == Manifest.TYPE]
            except LogError:  # it is away; the journal says so
                return []
            return [(d.group_id, d.reason) for m in found if isinstance(m, Manifest) for d in m.dropped]

        while True:
            found = await loop.run_in_executor(thread, look)
            for group, reason in found:
                await drop(group, reason)
            if not found:
                await asyncio.sleep(LOOK_SECONDS)
