"""Joins trajectories, votes and dead letters to the outstanding groups. It keeps books and decides nothing.

Reads the log at positions of its own (the learner is in no consumer group). A record of no outstanding
group is a duplicate or late, and is ignored; one that cannot be decoded or does not fit goes to the dead letters.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from broker.errors import DecodeError, LogError
from broker.log import Log, Producer, Reader, Record
from broker.messages import (
    DeadLetter,
    Outage,
    PlannerState,
    Position,
    Settled,
    Trajectory,
    Vote,
    decode,
    encode,
)
from broker.topics import Topics
from learner.planning.groups import Group
from learner.planning.outages import Outages
from learner.planning.shadows import Shadows

Offsets = dict[int, int]
ROWS = "data."  # and the name of a source: where dead letters of rows that cannot be asked come from
ACTORS = "actors"  # the consumer group of the actors


class Join:
    """The outstanding groups, in the order in which they were fed, and the readers that complete them."""

    def __init__(
        self, log: Log, topics: Topics, vocabulary: int, state: PlannerState, worker: str,
        letters: Producer | None = None, outages: Outages | None = None,
    ) -> None:  # fmt: skip
        self.groups: dict[str, Group] = {}
        self.dead: dict[str, str] = {}
        """Groups that a dead letter has ended, with the error, until the planner takes them."""
        self.rows_again: list[tuple[str, int]] = []
        """Source and prompt number of rows that could not be asked and are to be asked again, until the planner takes them."""
        self.steps_again: list[tuple[str, int]] = []
        """Steps that were set aside and are to be tried again, each by its name and the offset of its manifest, until the planner takes them."""
        self.duplicates = 0
        self.outages = outages or Outages()
        self.shadows = Shadows()
        self._log, self._topics, self._vocabulary, self._worker = log, topics, vocabulary, worker
        self._trajectories = log.reader(topics.trajectories, still_there(log, topics.trajectories, state.trajectories))
        self._rewards = log.reader(topics.rewards, still_there(log, topics.rewards, state.rewards))
        self._deadletters = log.reader(topics.deadletters, still_there(log, topics.deadletters, state.deadletters))
        self._letters: dict[Position, DeadLetter] = {}  # that a restart would need to know
        self._producer: Producer = letters or log.producer()
        self._buried: set[tuple[str, int, int]] = set()

    def add(self, groups: Iterable[Group]) -> None:
        self.groups.update((g.id, g) for g in groups)

    def remove(self, group_id: str) -> Group:
        self.shadows.ended(group_id)
        return self.groups.pop(group_id)

    def pump(self, timeout: float) -> int:
        """Read what has come, waiting at most ``timeout`` seconds for it; returns the number of records."""
        letters = self._deadletters.poll(256, 0.0)
        for record in letters:
            self._letter(record)
        votes = self._rewards.poll(2048, 0.0)  # first, so that no vote is read before its sample
        samples: list[Record] = []
        try:
            samples = self._trajectories.poll(256, 0.0 if letters or votes else timeout)
        finally:  # a log that goes away in between loses nothing that was read
            for record in samples:
                self._sample(record)
            for record in votes:
                self._vote(record)
        return len(letters) + len(votes) + len(samples)

    def _sample(self, record: Record) -> None:
        try:
            message = decode(record.value)
        except DecodeError as error:
            return self._bury(record, error.reason)
        if not isinstance(message, Trajectory):
            return self._bury(record, f"a {message.TYPE} in the trajectories topic")
        group = self.groups.get(message.group_id)
        if group is None:
            self.duplicates += 1
            return None
        wrong = self._misfit(group, message)
        if wrong:
            return self._bury(record, wrong)
        if message.finish_reason != "abort" and not group.add_sample(message, record.position):
            self.duplicates += 1
        return None

    def _misfit(self, group: Group, message: Trajectory) -> str:
        """Why ``message`` cannot be a sample of ``group``; empty if it can."""
        highest = int(message.tokens.max())
        if highest >= self._vocabulary:
            return f"token id {highest} is outside the vocabulary of {self._vocabulary}"
        if message.group_size != group.prompt.group_size or message.purpose != group.prompt.purpose:
            return "group_size or purpose differ from the prompt's"
        if message.response_tokens == 0:
            return "no trainable token"
        return ""

    def _vote(self, record: Record) -> None:
        try:
            message = decode(record.value)
        except DecodeError as error:
            return self._bury(record, error.reason)
        if isinstance(message, Outage):
            return self.outages.take(message, time.time())
        if not isinstance(message, Vote):
            return self._bury(record, f"a {message.TYPE} in the rewards topic")
        if message.shadow:
            return self.shadows.take(message, message.group_id in self.groups)  # for people, never trained on
        group = self.groups.get(message.group_id)
        if (
            group is None
            or message.rewarder not in group.prompt.rewards
            or message.index >= group.prompt.group_size
            or not group.add_vote(message, record.position)
        ):
            self.duplicates += 1
        return None

    def _letter(self, record: Record) -> None:
        try:
            message = decode(record.value)
        except DecodeError:
            return  # it lies in the dead letters already
        if isinstance(message, Settled) and message.action == "replayed":
            self._replayed(Position(record.partition, message.offset))
        if isinstance(message, DeadLetter):
            self._buried.add((message.topic, message.partition, message.offset))
            self._letters[record.position] = replace(message, key=b"", value=b"")
            if message.group_id in self.groups:
                self.dead.setdefault(message.group_id, message.error)

    def _replayed(self, position: Position) -> None:
        """A dead letter was replayed. A row of the data is asked again; a step that was set aside is tried again."""
        try:
            (record,) = self._deadletters.get([position])
            letter = decode(record.value)
        except (LogError, DecodeError):  # removed meanwhile
            return
        if isinstance(letter, DeadLetter) and letter.topic == self._topics.steps:
            self.steps_again.append((letter.key.decode("utf-8", "replace"), letter.offset))
        if isinstance(letter, DeadLetter) and letter.topic.startswith(ROWS) and letter.key.isdigit():
            self.rows_again.append((letter.topic.removeprefix(ROWS), int(letter.key)))

    def _bury(self, record: Record, error: str) -> None:
        """Dead-letter a record, once; if its key names an outstanding group, that group ends with it."""
        where = (record.topic, record.partition, record.offset)
        group_id = record.key.decode("utf-8", "replace")
        if group_id in self.groups:
            self.dead.setdefault(group_id, error)
        if where in self._buried:
            return
        self._buried.add(where)
        letter = DeadLetter(
            *where,
            record.key,
            record.value,
            error,
            self._worker,
            group_id if group_id in self.groups else "",
            created=time.time(),
        )
        self._producer.send(self._topics.deadletters, record.topic.encode(), encode(letter))
        self._producer.flush()

    def prompts_done(self) -> dict[int, int]:
        """For each partition, the offset below which the actors have finished all prompts."""
        return self._log.committed(self._topics.group(ACTORS), self._topics.prompts)

    def low(self) -> tuple[Offsets, Offsets, Offsets]:
        """Offsets of trajectories, rewards and dead letters below which no outstanding group has a record."""
        trajectories, rewards = self._trajectories.offsets(), self._rewards.offsets()
        for group in self.groups.values():
            samples, votes = group.positions()
            _lower(trajectories, samples)
            _lower(rewards, votes)
        return trajectories, rewards, self._letters_needed(trajectories, rewards)

    def _letters_needed(self, trajectories: Offsets, rewards: Offsets) -> Offsets:
        """For each partition, the offset of the first dead letter that still matters: one of an outstanding group, or of a record that a restart
        would read again."""
        low = {self._topics.trajectories: trajectories, self._topics.rewards: rewards}
        self._letters = {
            position: letter for position, letter in self._letters.items()
            if letter.group_id in self.groups or letter.offset >= low.get(letter.topic, {}).get(letter.partition, letter.offset + 1)
        }  # fmt: skip
        self._buried = {(m.topic, m.partition, m.offset) for m in self._letters.values()}
        needed = self._deadletters.offsets()
        _lower(needed, self._letters)
        return needed

    def close(self) -> None:
        for reader in (self._trajectories, self._rewards, self._deadletters):
            reader.close()
        self._producer.close()


def _lower(offsets: Offsets, positions: Iterable[Position]) -> None:
    for partition, offset in positions:
        if offset < offsets.get(partition, 0):
            offsets[partition] = offset


def still_there(log: Log, topic: str, offsets: Mapping[int, int]) -> Offsets:
    """``offsets``, or where retention has passed them, what is left."""
    begins = log.begins(topic)
    return {p: max(offset, begins.get(p, 0)) for p, offset in offsets.items()}


def read_all(reader: Reader, ends: Mapping[int, int]) -> list[Record]:
    """Every record from the reader's position up to ``ends``, partition by partition in order."""
    return list(each(reader, ends))


def each(reader: Reader, ends: Mapping[int, int]) -> Iterator[Record]:
    """The same one by one."""
    while any(offset < ends.get(p, 0) for p, offset in reader.offsets().items()):
        yield from reader.poll(1024, 1.0)
