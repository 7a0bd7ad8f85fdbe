"""Feeds prompts: which row comes next, under which id, and to which partition. Deterministic in the run's seed."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from broker.errors import DataError
from broker.log import Producer
from broker.messages import Position, Prompt, Sampling, encode
from learner.data.source import PromptSource
from learner.planning.groups import Group


class Schedule:
    """The endless order in which a source's rows are asked: a new permutation in every epoch."""

    def __init__(self, name: str, source: PromptSource, seed: int, shuffle: bool = True) -> None:
        if source.size == 0:
            raise DataError(f"[data.{name}] has no rows")
        if "@" in name or "#" in name:
            raise DataError(f"[data.{name}] may not have '@' or '#' in its name")
        self.name, self.source, self._seed, self._shuffle = name, source, seed, shuffle
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Sequence[int]:
        assert self.source.size is not None
        rows = list(range(self.source.size))
        if self._shuffle:
            random.Random(f"{self._seed}/{self.name}/{epoch}").shuffle(rows)
        return rows

    def row(self, number: int) -> tuple[int, int]:
        """Row and issue (how often it was asked before) of prompt ``number``."""
        if self.source.size is None:
            return number, 0
        epoch, place = divmod(number, self.source.size)
        return self._order(epoch)[place], epoch


@dataclass(frozen=True, slots=True)
class Ask:
    """How the prompts of one stage are asked."""

    group_size: int
    rewards: Mapping[str, float]
    sampling: Sampling
    purpose: str = "train"
    evaluation: str = ""


class Feed:
    """Writes prompts to the log. ``cursor`` counts the prompts that were fed from each source."""

    def __init__(self, producer: Producer, topic: str, partitions: int, cursor: Mapping[str, int]) -> None:
        self._producer, self._topic, self._partitions = producer, topic, partitions
        self.cursor = dict(cursor)
        self.missing: dict[str, list[int]] = {}
        """Numbers below the cursor that a crash kept from the log; they are fed first."""

    def next_numbers(self, name: str, count: int) -> list[int]:
        """Take the next ``count`` numbers of source ``name``."""
        waiting = self.missing.get(name, [])
        numbers = [waiting.pop(0) for _ in range(min(count, len(waiting)))]
        start = self.cursor.get(name, 0)
        self.cursor[name] = start + count - len(numbers)
        return numbers + list(range(start, self.cursor[name]))

    def feed(
        self,
        schedule: Schedule,
        numbers: Sequence[int],
        ask: Ask,
        outstanding: Iterable[Group],
        version: int,
        min_versions: Sequence[int],
    ) -> list[Group]:
        """Write these prompts durably, each to the partition with the fewest outstanding groups, and return their groups."""
        load = Counter(dict.fromkeys(range(self._partitions), 0))
        load.update(group.position.partition for group in outstanding)
        now = time.time()
        prompts = [self._prompt(schedule, n, ask, version, m, now) for n, m in zip(numbers, min_versions, strict=True)]
        for prompt in prompts:
            partition = min(load, key=lambda p: (load[p], p))
            load[partition] += 1
            self._producer.send(self._topic, prompt.group_id.encode(), encode(prompt), partition)
        positions = self._producer.flush()
        return [Group(prompt, Position(*position), now) for prompt, position in zip(prompts, positions, strict=True)]

    def _prompt(self, schedule: Schedule, number: int, ask: Ask, version: int, min_version: int, now: float) -> Prompt:
        row, issue = schedule.row(number)
        data = schedule.source.row(row)
        label = ask.evaluation if ask.purpose == "eval" else str(issue)
        return Prompt(
            group_id=f"{schedule.name}-{row}@{label}",
            messages=data.messages,
            group_size=ask.group_size,
            answer=data.answer,
            kind=data.kind,
            metadata=data.metadata,
            rewards=ask.rewards,
            sampling=ask.sampling,
            purpose=ask.purpose,
            collection=ask.evaluation,
            number=number,
            version=version,
            min_version=min_version,
            created=now,
        )
