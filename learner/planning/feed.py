"""Feeds prompts: which row comes next, under which id, and to which partition. Deterministic in the run's seed.

A source may grow, shrink or be edited between two starts: a new *era* of it then begins, with issue numbers of its own, so that the ids of
its groups never mean two things.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from broker.errors import DataError
from broker.log import Producer
from broker.messages import DeadLetter, Era, Position, Prompt, Sampling, encode
from learner.data.source import PromptRow, PromptSource, row_of
from learner.data.turns import turns
from learner.planning.groups import Group
from learner.planning.join import Join

log = logging.getLogger("learner")
PROBES = 64  # number of rows that go into a source's fingerprint


class Schedule:
    """The endless order in which a source's rows are asked: a new permutation in every epoch.

    ``eras`` are those recorded in the log. If the source has changed since the last of them, a new era begins with prompt ``begins``.
    """

    def __init__(
        self,
        name: str,
        source: PromptSource,
        seed: int,
        shuffle: bool = True,
        eras: Sequence[Era] = (),
        begins: int = 0,
    ) -> None:
        if source.size == 0:
            raise DataError(f"[data.{name}] has no rows")
        if "@" in name or "#" in name:
            raise DataError(f"[data.{name}] may not have '@' or '#' in its name")
        self.name, self.source, self._seed, self._shuffle = name, source, seed, shuffle
        self.eras = self._with_new(tuple(eras), begins)
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _with_new(self, eras: tuple[Era, ...], begins: int) -> tuple[Era, ...]:
        size = self.source.size
        if size is None:
            return ()
        now = fingerprint(self.source)
        if not eras:
            return (Era(0, size, 0, now),)
        last = eras[-1]
        if (last.size, last.fingerprint) == (size, now):
            return eras
        asked = -(-max(0, begins - last.start) // last.size)  # epochs of the last era that have begun
        what = f"has {size} rows where it had {last.size}" if size != last.size else "has other rows than before"
        log.warning("[data.%s] %s: it is taken up as it is now, from prompt %d on", self.name, what, begins)
        if begins == last.start:
            return (*eras[:-1], Era(begins, size, last.first_issue, now))
        return (*eras, Era(begins, size, last.first_issue + asked, now))

    def _permutation(self, size: int, issue: int) -> Sequence[int]:
        rows = list(range(size))
        if self._shuffle:
            random.Random(f"{self._seed}/{self.name}/{issue}").shuffle(rows)
        return rows

    def row(self, number: int) -> tuple[int, int]:
        """The row of prompt ``number``, and its issue: how many times that row was asked before."""
        if not self.eras:
            return number, 0
        era = next((e for e in reversed(self.eras) if e.start <= number), self.eras[0])
        epoch, place = divmod(number - era.start, era.size)
        issue = era.first_issue + epoch
        return self._order(era.size, issue)[place], issue


def fingerprint(source: PromptSource) -> str:
    """A digest that changes when the source does, computed from rows spread evenly over it. An unreadable row counts as unreadable."""
    size = source.size or 0
    digest = hashlib.sha256(f"{size}{getattr(source, 'selection', '')}".encode())
    for number in sorted({i * (size - 1) // max(1, PROBES - 1) for i in range(min(PROBES, size))}):
        try:
            digest.update(content_of(row_of(source, number)).encode())
        except DataError:
            digest.update(b"odd")
    return digest.hexdigest()[:16]


def content_of(row: PromptRow) -> str:
    """A row's own id, of what is asked and what answers it."""
    said = json.dumps([[list(m) for m in row.messages], row.answer], ensure_ascii=False)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Ask:
    """How the prompts of one stage are asked. ``collection`` names what the groups are for, where that is no gradient."""

    group_size: int
    rewards: Mapping[str, float]
    sampling: Sampling
    purpose: str = "train"
    collection: str = ""
    environment: str = ""
    template: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Feeding:
    """One of the sources of a stage's prompts: its order, how they are asked, and how often in comparison with the others."""

    schedule: Schedule
    ask: Ask
    weight: float = 1.0


class Question(NamedTuple):
    """Prompt ``number`` of a schedule, and the oldest version that may answer it."""

    feeding: Feeding
    number: int
    min_version: int


class Feed:
    """Writes prompts to the log. ``cursor`` counts the prompts that were fed from each source; ``missing`` are numbers below it that did
    not reach the log because of a crash, or that a fork asks again: they are fed first."""

    def __init__(
        self,
        producer: Producer,
        topic: str,
        partitions: int,
        cursor: Mapping[str, int],
        missing: Mapping[str, list[int]] | None = None,
        letters: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._producer, self._topic, self._partitions, self._letters = producer, topic, partitions, letters
        self.cursor = dict(cursor)
        self.missing = {name: list(numbers) for name, numbers in (missing or {}).items()}
        self.eras: dict[str, tuple[Era, ...]] = {}
        self._odd: Counter[str] = Counter()  # rows of each source that could not be asked, since one could

    def next_questions(self, feedings: Sequence[Feeding], floors: Sequence[int]) -> list[Question]:
        """The next prompts, one for each of ``floors``, taken from the sources in turn by weight. The turn depends on how many prompts were asked
        of all of them so far, so a source that is added later takes its share from then on and does not catch up."""
        out = []
        whose = turns(tuple(f.weight for f in feedings))
        for floor in floors:
            asked = sum(self.cursor.get(f.schedule.name, 0) for f in feedings)
            feeding = feedings[whose.of(asked)[0]]
            out.append(Question(feeding, self._next_number(feeding.schedule.name), floor))
        return out

    def rows_again(self, join: Join) -> None:
        """Feed the rows that could not be asked and were mended before any new one of their source."""
        outstanding = {(group.prompt.dataset, group.prompt.number) for group in join.groups.values()}
        for name, number in join.rows_again:
            waiting = self.missing.setdefault(name, [])
            if number < self.cursor.get(name, 0) and number not in waiting and (name, number) not in outstanding:
                log.info("[data.%s] prompt %d could not be asked, and is tried again", name, number)
                waiting.append(number)
        join.rows_again.clear()

    def _next_number(self, name: str) -> int:
        if waiting := self.missing.get(name):
            return waiting.pop(0)
        number = self.cursor.get(name, 0)
        self.cursor[name] = number + 1
        return number

    def feed(self, questions: Sequence[Question], outstanding: Iterable[Group], version: int) -> list[Group]:
        """Write these prompts durably, each to the partition with the fewest outstanding groups, and return their groups.

        A row that cannot be asked becomes a dead letter, and has no group. Raises DataError once no row of a source can be asked.
        """
        load = Counter(dict.fromkeys(range(self._partitions), 0))
        load.update(group.position.partition for group in outstanding)
        now = self._clock()
        prompts = [p for q in questions if (p := self._asked(q, version, now)) is not None]
        for prompt in prompts:
            partition = min(load, key=lambda p: (load[p], p))
            load[partition] += 1
            self._producer.send(self._topic, prompt.group_id.encode(), encode(prompt), partition)
        positions = self._producer.flush()[-len(prompts) :] if prompts else self._producer.flush()
        return [Group(prompt, Position(*position), now) for prompt, position in zip(prompts, positions, strict=False)]

    def again(self, groups: Sequence[Group]) -> list[Position]:
        """Write the prompts of these groups again, because some of their samples were lost; returns the positions. A sample that comes twice
        counts once."""
        for group in groups:
            self._producer.send(self._topic, group.id.encode(), encode(group.prompt), group.position.partition)
        return self._producer.flush()

    def _asked(self, question: Question, version: int, now: float) -> Prompt | None:
        schedule = question.feeding.schedule
        if question.feeding.ask.purpose == "train":  # what is collected is asked in the order of the rows: no eras
            self.eras[schedule.name] = schedule.eras
        row, issue = schedule.row(question.number)
        try:
            prompt = _prompt(question, row, issue, row_of(schedule.source, row), version, now)
        except DataError as error:
            self._bury(schedule, row, question.number, error)
            return None
        self._odd[schedule.name] = 0
        return prompt

    def _bury(self, schedule: Schedule, row: int, number: int, error: DataError) -> None:
        self._odd[schedule.name] += 1
        log.warning("[data.%s] row %d cannot be asked: %s", schedule.name, row, error)
        if self._letters:
            letter = DeadLetter(
                f"data.{schedule.name}", 0, row, str(number).encode(), b"", str(error), "learner", created=self._clock()
            )
            self._producer.send(self._letters, schedule.name.encode(), encode(letter))
        if self._odd[schedule.name] >= (schedule.source.size or PROBES):
            raise DataError(f"[data.{schedule.name}] no row can be asked; the last one: {error}") from error


def _prompt(question: Question, row: int, issue: int, data: PromptRow, version: int, now: float) -> Prompt:
    schedule, ask = question.feeding.schedule, question.feeding.ask
    label = ask.collection if ask.purpose != "train" else str(issue)
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
        collection=ask.collection,
        number=question.number,
        version=version,
        min_version=question.min_version,
        created=now,
        environment=ask.environment,
        content=content_of(data),
        template=ask.template,
    )
