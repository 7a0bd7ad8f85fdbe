"""The history of a run, folded from its ``steps`` topic. It is the only place that knows that after a redo the last result of a step counts.

Manifests are kept by their heads, since each names every sample of its step; whoever wants one whole reads it at its offset.
A history may cover the whole topic, the surroundings of some steps, or the newest records, or grow with new records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from broker.errors import DecodeError
from broker.log import Log, Record
from broker.messages import Artefact, Ending, Evaluation, Manifest, Message, Seal, StepResult
from broker.topics import Topics
from headrace.reading.heads import Head, head_of
from headrace.reading.records import at, read, records

REDO_STEPS = 1024
"""How many steps after a step its result is looked for once more. A redo goes back to the newest checkpoint, and checkpoints are
written far more often than that ([learner] checkpoint_every)."""
PLANNED_AHEAD = 64  # number of manifests that may precede the next result
PROBE = 16  # records that one step of the bisection reads


class Executed(NamedTuple):
    """What came out of a step, and when the log took it."""

    result: StepResult
    at: float


class Ended(NamedTuple):
    """A record that ends the groups of a collection, and when the log took it."""

    ending: Ending
    at: float


class History:
    """``manifests`` are heads in the order of the log; ``keep`` bounds the results and endings that are kept (0: all of them)."""

    def __init__(self, keep: int = 0) -> None:
        self.manifests: list[Head] = []
        """Without those that only say that a step was set aside: they do not tell what was under way."""
        self.endings: list[Ended] = []
        self.aside: dict[int, str] = {}
        """The steps that could not be executed, with the reason: they have trained nothing."""
        self.seal: Seal | None = None
        self.next = 0
        """The offset after the last record that was taken."""
        self._keep = keep
        self._results: dict[tuple[int, int], Executed] = {}
        self._made: dict[tuple[int, int], Executed] = {}
        self._newest: Record | None = None
        self.reinforced: set[int] = set()
        """The stages that have manifests of steps; the others trained under supervision."""

    @classmethod
    def of(cls, log: Log, topics: Topics, start: int = 0) -> History:
        """All that is there now, from offset ``start`` on."""
        history = cls()
        for record in records(log, topics.steps, {0: start}):
            history.take(record)
        return history

    @classmethod
    def recent(cls, log: Log, topics: Topics, count: int) -> History:
        """About the last ``count`` records, and at least the newest manifest if there is one at all."""
        begin, end = log.begins(topics.steps)[0], log.ends(topics.steps)[0]
        while True:
            start = max(begin, end - count)
            history = cls.of(log, topics, start)
            if history.manifests or start == begin:
                return history
            count *= 8

    @classmethod
    def around(cls, log: Log, topics: Topics, first: int, last: int) -> History:
        """Steps ``first`` to ``last``: from the manifest before them to where no redo can reach back to them."""
        start = _before(log, topics, find_step(log, topics, first))
        history = cls()
        for record in records(log, topics.steps, {0: start}):
            head = history.take(record)
            if isinstance(head, Head) and head.step > last + REDO_STEPS:
                break
        return history

    def take(self, record: Record) -> Head | Message | DecodeError:
        """Fold in the next record; returns a manifest's head, and any other message whole."""
        self.next = record.offset + 1
        head = head_of(record)
        if head.kind == "set_aside":
            self._put_aside(head, read(record))
            return head
        if head.type == Manifest.TYPE:
            self.manifests.append(head)
            self._newest = record
            if head.kind == "step":
                self.reinforced.add(head.stage)
            if self._keep and len(self.manifests) > self._keep + PLANNED_AHEAD:
                del self.manifests[0]
            return head
        message = read(record)
        if isinstance(message, StepResult):
            self._executed(message, record.timestamp)
        elif isinstance(message, Evaluation | Artefact):
            self.endings.append(Ended(message, record.timestamp))
            if self._keep and len(self.endings) > self._keep:
                del self.endings[0]
        elif isinstance(message, Seal):
            self.seal = message
        return message

    def _put_aside(self, head: Head, message: Message | DecodeError) -> None:
        if isinstance(message, Manifest):
            self.aside.setdefault(head.step, message.why)
            if self._keep and len(self.aside) > self._keep:
                del self.aside[next(iter(self.aside))]

    def _executed(self, result: StepResult, when: float) -> None:
        done = Executed(result, when)
        key = result.stage, result.stage_step
        self._results.pop(key, None)  # the one that holds is the newest, also where only some are kept
        self._results[key] = self._made[result.stage, result.step] = done
        if self._keep and len(self._results) > self._keep:
            old = self._results.pop(next(iter(self._results))).result
            if self._made.get((old.stage, old.step), done).result is old:
                del self._made[old.stage, old.step]

    # -- what it tells -------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> list[Head]:
        """The manifests of reinforced steps, without those that were set aside."""
        return [head for head in self.manifests if head.kind == "step" and head.step not in self.aside]

    def results(self, reinforced: bool) -> list[StepResult]:
        """The results that count, by stage and step, of the reinforced stages or of the others."""
        stages = self.reinforced
        return [done.result for (stage, _), done in sorted(self._results.items()) if (stage in stages) == reinforced]

    def executions(self) -> list[Executed]:
        """The results that hold, in the order in which they came."""
        return list(self._results.values())

    def executed(self, head: Head) -> Executed | None:
        """What came out of a manifest, if it has been executed."""
        return self._made.get((head.stage, head.step))

    def evaluations(self) -> list[Evaluation]:
        return [ended.ending for ended in self.endings if isinstance(ended.ending, Evaluation)]

    def newest_manifest(self) -> Manifest | None:
        """The newest manifest, whole."""
        message = read(self._newest) if self._newest is not None else None
        return message if isinstance(message, Manifest) else None


def whole(log: Log, topics: Topics, heads: Sequence[Head]) -> Iterator[Manifest]:
    """The manifests of these heads, one at a time."""
    for message in at(log, topics.steps, (head.offset for head in heads)):
        if isinstance(message, Manifest):
            yield message


def find_step(log: Log, topics: Topics, step: int) -> int:
    """An offset in front of the first manifest of ``step`` and behind those of earlier ones: manifests are in order of their steps."""
    low, high = log.begins(topics.steps)[0], log.ends(topics.steps)[0]
    while high - low > PROBE:
        middle = (low + high) // 2
        head = next(_manifests(log, topics, middle, high), None)
        if head is None or head.step >= step:
            high = middle
        else:
            low = head.offset + 1
    return low


def _before(log: Log, topics: Topics, offset: int) -> int:
    """The offset of the last manifest below ``offset``; the topic's first if there is none."""
    begin, reach = log.begins(topics.steps)[0], PROBE
    while offset > begin:
        start, reach = max(begin, offset - reach), reach * 8
        found = [head.offset for head in _manifests(log, topics, start, offset)]
        if found:
            return found[-1]
        offset = start
    return begin


def _manifests(log: Log, topics: Topics, start: int, end: int) -> Iterator[Head]:
    """The manifests from offset ``start`` up to ``end``, in order of their steps."""
    for record in records(log, topics.steps, {0: start}, {0: end}, batch=PROBE):
        head = head_of(record)
        if head.type == Manifest.TYPE and head.kind != "set_aside":  # which comes behind manifests of later steps
            yield head
