"""Helps to judge what a run has already sampled: the consumer group to use, and which samples already have a vote."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from broker.errors import DecodeError, LogUnavailable
from broker.log import Log
from broker.messages import Vote, decode
from broker.topics import Topics
from rewarders.config import RewarderTable
from rewarders.judges import isolated

PATIENCE_SECONDS = 15.0


def group_of(rewarder: str, table: RewarderTable, base: Path) -> str:
    """The consumer group (without the run's name) in which this version of a rewarder judges history.

    After an interruption it resumes; another version starts from the beginning. Raises HeadraceError if the rewarder
    cannot be made.
    """
    judge = isolated(table, base)
    try:
        judge.start()
        return f"history.{rewarder}.{judge.about['version']}"
    finally:
        judge.close()


def voted_on(log: Log, topics: Topics, rewarder: str) -> set[tuple[str, int]]:
    """The samples (group id, index) on which this rewarder has cast a vote that counts. Raises LogUnavailable."""
    found: set[tuple[str, int]] = set()
    ends = log.ends(topics.rewards)
    with closing(log.reader(topics.rewards)) as reader:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(offset < ends[p] for p, offset in reader.offsets().items()):
            records = reader.poll(1024, 0.2)
            if records:
                deadline = time.monotonic() + PATIENCE_SECONDS
            elif time.monotonic() > deadline:
                raise LogUnavailable(f"{topics.rewards} gave nothing for {PATIENCE_SECONDS:.0f} s though there is more")
            for record in records:
                try:
                    vote = decode(record.value)
                except DecodeError:
                    continue  # the learner dead-letters it
                if isinstance(vote, Vote) and vote.rewarder == rewarder and not vote.shadow:
                    found.add((vote.group_id, vote.index))
    return found
