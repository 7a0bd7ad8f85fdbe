"""The part of the audit that reads what manifests name: every record is there, and is what the manifest says it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from broker.errors import DecodeError, HeadraceError, OffsetExpired
from broker.log import Log, Reader
from broker.messages import (
    Artefact,
    GroupRef,
    Manifest,
    Message,
    Position,
    Prompt,
    SampleRef,
    Trajectory,
    Trimmed,
    Vote,
)
from broker.topics import Topics
from headrace.reading.audit import Audit
from headrace.reading.records import read, scan


class Lineage:
    """Checks one manifest after the other; holds the records of one group at a time."""

    def __init__(self, log: Log, topics: Topics, audit: Audit) -> None:
        self._readers = tuple(log.reader(t) for t in (topics.prompts, topics.trajectories, topics.rewards))
        self._fetch = _Fetch(self._readers, wanted_gone(log, topics), audit)
        self._audit = audit

    def look_into(self, ending: Manifest | Artefact) -> None:
        if isinstance(ending, Manifest):
            self._audit.looked_into += 1
            for group in ending.groups:
                self._group(group, f"step {ending.step}", ending.step, judged=True)
        else:  # what was kept need not be judged, and the policy that sampled it was made already
            for group in ending.kept:
                self._group(group, f"artefact {ending.name}", ending.step + 1, judged=False)

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    def _group(self, group: GroupRef, of: str, step: int, judged: bool) -> None:
        name = f"group {group.group_id} of {of}"
        for index, times in Counter(sample.sample for sample in group.samples).items():
            if times > 1:
                self._audit.problem(f"sample {group.group_id}#{index} was trained {times} times")
        (prompt,) = self._fetch(0, [group.prompt], name)
        if prompt is not None and not (isinstance(prompt, Prompt) and prompt.group_id == group.group_id):
            self._audit.problem(f"{name}: its prompt does not lie at {tuple(group.prompt)}")
        samples = self._fetch(1, [s.position for s in group.samples], name)
        votes = iter(self._fetch(2, [v.position for s in group.samples for v in s.votes], name))
        for ref, sample in zip(group.samples, samples, strict=True):
            name = f"sample {group.group_id}#{ref.sample} of {of}"
            cast = [next(votes) for _ in ref.votes]
            self._sample(name, group.group_id, ref, sample, step)
            self._votes(name, group.group_id, ref, cast, judged)

    def _sample(
        self, name: str, group_id: str, ref: SampleRef, sample: Message | DecodeError | None, step: int
    ) -> None:
        if isinstance(sample, Trajectory) and (sample.group_id, sample.index) == (group_id, ref.sample):
            if sample.newest_version >= step:
                self._audit.problem(
                    f"{name}: it was sampled by version {sample.newest_version}, which was not made yet"
                )
        elif sample is not None:
            self._audit.problem(f"{name}: another record lies at {tuple(ref.position)}")

    def _votes(
        self, name: str, group_id: str, ref: SampleRef, votes: Sequence[Message | DecodeError | None], judged: bool
    ) -> None:
        for vote, wanted in zip(votes, ref.votes, strict=True):
            named = (group_id, ref.sample, wanted.rewarder)
            if isinstance(vote, Vote) and (vote.group_id, vote.index, vote.rewarder) == named:
                if vote.outcome == "error" and judged:
                    self._audit.problem(f"{name}: it was trained though {vote.rewarder} could not judge it")
            elif vote is not None:
                self._audit.problem(f"{name}: {wanted.rewarder}'s vote does not lie at {tuple(wanted.position)}")
        if judged and votes and all(isinstance(v, Vote) and v.outcome == "abstain" for v in votes):
            self._audit.problem(f"{name}: it was trained though every rewarder abstained")
        if judged and not ref.votes:
            self._audit.problem(f"{name}: it was trained without a vote")


@contextmanager
def lineage(log: Log, topics: Topics, audit: Audit) -> Iterator[Lineage]:
    found = Lineage(log, topics, audit)
    try:
        yield found
    finally:
        found.close()


def wanted_gone(log: Log, topics: Topics) -> Callable[[int, Position], bool]:
    """Whether somebody wanted the record at a position of a topic (0, 1, 2) removed: by retention, or by a trim."""
    names, specs = (topics.prompts, topics.trajectories, topics.rewards), log.topics()
    below: dict[tuple[str, int], int] = {}
    for _, message in scan(log, topics.deadletters):
        if isinstance(message, Trimmed):
            for partition, offset in message.offsets.items():
                below[message.topic, partition] = max(offset, below.get((message.topic, partition), 0))

    def wanted(topic: int, position: Position) -> bool:
        name = names[topic]
        return specs[name].retention_seconds > 0 or position.offset < below.get((name, position.partition), 0)

    return wanted


class _Fetch:
    """Reads the records of a group: prompts, trajectories, votes (topics 0, 1, 2)."""

    def __init__(self, readers: tuple[Reader, ...], wanted: Callable[[int, Position], bool], audit: Audit) -> None:
        self._readers, self._wanted, self._audit = readers, wanted, audit

    def __call__(self, topic: int, positions: Sequence[Position], name: str) -> list[Message | DecodeError | None]:
        """The records at ``positions``; None for one that is not there (and the audit knows it)."""
        try:
            return [read(r) for r in self._readers[topic].get(positions)]
        except HeadraceError:
            return [self._one(topic, p, name) for p in positions]

    def _one(self, topic: int, position: Position, name: str) -> Message | DecodeError | None:
        try:
            return read(self._readers[topic].get([position])[0])
        except OffsetExpired as error:
            if self._wanted(topic, position):
                self._audit.expired += 1
            else:
                self._audit.problem(f"{name}: {error}")
        except HeadraceError as error:
            self._audit.problem(f"{name}: {error}")
        return None
