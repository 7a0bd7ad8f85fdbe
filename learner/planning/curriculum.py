"""Reads the pass rates of a source's rows from the log, and chooses rows by them. The same log, read up to the same positions, gives the same rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from broker.errors import DataError, DecodeError
from broker.log import Log
from broker.messages import Message, Prompt, Vote, decode
from broker.topics import Topics
from learner.data.selection import CurriculumTable, read_rows
from learner.planning.feed import content_of

Offsets = Mapping[int, int]
BATCH = 1024


@dataclass(frozen=True, slots=True)
class Read:
    """How far the log was read: the offsets after the last vote and the last prompt of each partition."""

    rewards: Offsets
    prompts: Offsets

    @classmethod
    def now(cls, log: Log, topics: Topics) -> Read:
        """Up to the current end of the log. The votes' end is taken first, so that the prompt of every vote is included."""
        rewards = dict(log.ends(topics.rewards))
        return cls(rewards, dict(log.ends(topics.prompts)))


@dataclass(frozen=True, slots=True)
class Rate:
    """Of ``judged`` samples ``right`` were."""

    right: int = 0
    judged: int = 0

    @property
    def share(self) -> float:
        return self.right / self.judged if self.judged else 0.0


def pass_rates(log: Log, topics: Topics, read: Read, rewarder: str) -> dict[str, Rate]:
    """Right and judged samples of everything that was trained on or collected, by the fingerprint of its row."""
    contents: dict[str, str] = {}
    for message in _messages(log, topics.prompts, read.prompts):
        if isinstance(message, Prompt) and message.purpose != "eval" and message.content:
            contents[message.group_id] = message.content
    seen: dict[str, dict[tuple[str, int], bool]] = defaultdict(dict)
    for message in _messages(log, topics.rewards, read.rewards):
        if (
            isinstance(message, Vote)
            and message.rewarder == rewarder
            and message.value is not None
            and not message.shadow
        ):
            content = contents.get(message.group_id)
            if content is not None:  # the first vote of a sample holds
                seen[content].setdefault((message.group_id, message.index), message.value >= 1.0)
    return {content: Rate(sum(marks.values()), len(marks)) for content, marks in seen.items()}


def chosen_rows(source: Any, size: int, rates: Mapping[str, Rate], rule: CurriculumTable, where: str) -> list[int]:
    """The row numbers that the rule chooses, in order, each as often as it comes in an epoch. Raises DataError if that is none."""
    numbers: list[int] = []
    for number, row in read_rows(source, range(size)):
        rate = rates.get(content_of(row), Rate()) if row is not None else Rate()
        if rate.judged < rule.fewest:
            numbers += [number] * rule.unseen
        elif rule.least <= rate.share <= rule.most:
            numbers += [number] * times(rate.share, rule.repeat)
    if not numbers:
        raise DataError(
            f"{where} curriculum: none of {size} rows has a pass rate from {rule.least:g} to {rule.most:g} by {rule.rewarder!r}; widen least and most, or set unseen = true"
        )
    return numbers


def times(share: float, repeat: int) -> int:
    """How often a row with this pass rate is repeated: most often where the variance of a sample's reward is highest."""
    return 1 + round((repeat - 1) * 4 * share * (1 - share))


def _messages(log: Log, topic: str, ends: Offsets) -> Iterator[Message]:
    """The records below ``ends``."""
    with closing(log.reader(topic)) as reader:
        while any(offset < ends.get(p, 0) for p, offset in reader.offsets().items()):
            for record in reader.poll(BATCH, 1.0):
                if record.offset >= ends.get(record.partition, 0):
                    continue
                try:
                    yield decode(record.value)
                except DecodeError:
                    continue  # written by another client; the audit names it
