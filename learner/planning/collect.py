"""Collections in progress: groups whose samples become an evaluation's figures or a stage's data instead of a gradient.

A collection runs in the ring like everything else: its prompts go to the actors, its samples to the rewarders. It ends with one record,
which ends all of its groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker.log import Producer
from broker.messages import Dropped, Ending, encode
from learner.planning.fates import Reason
from learner.planning.groups import Group
from learner.planning.join import Join


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection, called ``name``. A group that is still incomplete ``deadline`` seconds after ``asked`` is given up."""

    name: str
    step: int
    stage: int
    deadline: float
    asked: float


Finish = Callable[[Collection, Sequence[Group], Sequence[Dropped]], Ending]
"""Makes the record of a collection whose groups are complete; those that were given up come apart from them, with the reason."""


class Collections:
    """Writes each record as soon as the last group of its collection has ended."""

    def __init__(self, join: Join, producer: Producer, topic: str) -> None:
        self._join, self._producer, self._topic = join, producer, topic
        self._under_way: dict[str, tuple[Collection, Finish]] = {}
        self._lost: dict[str, list[Dropped]] = {}
        self._restarted = 0.0

    @property
    def pending(self) -> tuple[str, ...]:
        return tuple(self._under_way)

    def expect(self, collection: Collection, finish: Finish) -> None:
        self._under_way.setdefault(collection.name, (collection, finish))

    def restart_deadlines(self, now: float) -> None:
        """Count all deadlines anew from ``now``."""
        self._restarted = now

    def settle(self, now: float) -> list[Ending]:
        """Write the records of all collections that are complete; returns them."""
        done = []
        for collection, finish in list(self._under_way.values()):
            groups = [g for g in self._join.groups.values() if g.prompt.collection == collection.name]
            groups = [g for g in groups if not self._lose(g, collection, now)]
            if all(g.complete for g in groups):
                done.append(self._finish(collection, finish, groups))
        return done

    def _lose(self, group: Group, collection: Collection, now: float) -> bool:
        """Whether the group ends here without an answer: dead-lettered, or past the deadline."""
        if group.id in self._join.dead:
            del self._join.dead[group.id]
            reason = Reason.DEAD_LETTER
        elif not group.complete and now - self._begun(group, collection, now) > collection.deadline:
            reason = Reason.INCOMPLETE
        else:
            return False
        self._join.remove(group.id)
        self._lost.setdefault(collection.name, []).append(Dropped(group.id, reason.value, group.tokens))
        return True

    def _begun(self, group: Group, collection: Collection, now: float) -> float:
        """The time from which a group's deadline counts. The clock does not run while a rewarder of its mix is out of order."""
        return max(collection.asked, self._restarted, self._join.outages.over(group.prompt.rewards, now))

    def _finish(self, collection: Collection, finish: Finish, groups: list[Group]) -> Ending:
        record = finish(collection, groups, self._lost.pop(collection.name, []))
        self._producer.send(self._topic, f"{record.TYPE}/{collection.name}".encode(), encode(record))
        self._producer.flush()
        for group in groups:
            self._join.remove(group.id)
        del self._under_way[collection.name]
        return record
