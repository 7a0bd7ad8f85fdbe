"""Follows the log for groups that have ended, so that nobody plays them any longer and what was said in them can be forgotten."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from broker.errors import HeadraceError, LogError
from broker.log import Log, Record
from broker.messages import Artefact, Evaluation, Manifest
from broker.topics import Topics
from headrace.reading.heads import head_of
from headrace.reading.records import read, records

log_ = logging.getLogger("serve")
LOOK_SECONDS = 1.0
ENDING = (Manifest.TYPE, Evaluation.TYPE, Artefact.TYPE)
"""The records that end groups."""


def ended_by(record: Record) -> list[tuple[str, str]]:
    """The groups that a record of the ``steps`` topic ends, with the reasons: none, where a group's samples were used."""
    if head_of(record).type not in ENDING:
        return []
    message = read(record)
    if isinstance(message, Manifest):
        groups = tuple(group.group_id for group in message.groups)
    elif isinstance(message, Evaluation | Artefact):
        groups = message.group_ids
    else:
        return []
    return list((dict.fromkeys(groups, "") | {d.group_id: d.reason for d in message.dropped}).items())


def ended_before(log: Log, topics: Topics, ends: Mapping[int, int]) -> dict[str, str]:
    """All groups that have ended below these offsets of the ``steps`` topic."""
    return dict(ending for record in records(log, topics.steps, ends=ends) for ending in ended_by(record))


async def follow(
    log: Log, topics: Topics, start: Mapping[int, int], known: Iterable[tuple[str, str]], ended: Callable[[str, str], Awaitable[None]]
) -> None:  # fmt: skip
    """Tell ``ended`` of each group that has, those that are ``known`` first and then those behind ``start``, for ever. A group of which it
    could not be told is told again."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "fates") as thread:
        reader = await loop.run_in_executor(thread, lambda: log.reader(topics.steps, dict(start)))

        def look() -> list[tuple[str, str]]:
            try:
                return [ending for record in reader.poll(256, 0.0) for ending in ended_by(record)]
            except (LogError, OSError):  # it is away; the journal says so
                return []

        waiting = deque(known)
        while True:
            waiting += await loop.run_in_executor(thread, look)
            busy = bool(waiting)
            try:
                while waiting:
                    await ended(*waiting[0])
                    waiting.popleft()
            except (HeadraceError, OSError) as error:
                log_.warning("sessions in group %s, which has ended, cannot end yet: %s", waiting[0][0], error)
                busy = False
            if not busy:
                await asyncio.sleep(LOOK_SECONDS)
