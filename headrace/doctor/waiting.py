"""Finds the outstanding groups, and what each of them lacks: samples, or the votes of a rewarder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field

from broker.log import Log
from broker.messages import Trajectory, Vote
from broker.topics import Topics
from headrace.reading.history import History
from headrace.reading.records import read
from learner.planning.groups import Group
from learner.planning.join import read_all
from learner.planning.recovery import Tail, read_outstanding


@dataclass(slots=True)
class Waiting:
    """Counts of groups, and the oldest of each kind with the time at which it was fed."""

    groups: int = 0
    unsampled: int = 0
    unjudged: Counter[str] = field(default_factory=Counter)
    """Groups that lack a vote of this rewarder on a sample that has come."""
    oldest: dict[str, tuple[float, str]] = field(default_factory=dict)
    """By what is lacking: ``samples`` or a rewarder's name."""

    def add(self, group: Group) -> None:
        self.groups += 1
        lacking = [] if group.sampled else ["samples"]
        lacking += [
            name for name in group.prompt.rewards if any(name not in group.votes_on(index) for index in group.samples)
        ]
        self.unsampled += not group.sampled
        for name in lacking:
            if name != "samples":
                self.unjudged[name] += 1
            self.oldest[name] = min(self.oldest.get(name, (group.fed, group.id)), (group.fed, group.id))


def waiting_groups(log: Log, topics: Topics, history: History) -> Waiting:
    """Of all groups without an end, by what ``history`` tells of the newest records of the steps topic. Raises LogError."""
    tail = Tail(endings=[ended.ending for ended in history.endings], newest=history.newest_manifest())
    found = read_outstanding(log, topics, tail)
    groups = {group.id: group for group in found.groups}
    for topic, start in ((topics.trajectories, found.state.trajectories), (topics.rewards, found.state.rewards)):
        _join(log, topic, start, groups)
    waiting = Waiting()
    for group in groups.values():
        waiting.add(group)
    return waiting


def _join(log: Log, topic: str, start: Mapping[int, int], groups: Mapping[str, Group]) -> None:
    begins = log.begins(topic)
    with closing(log.reader(topic, {p: max(begins.get(p, 0), offset) for p, offset in start.items()})) as reader:
        for record in read_all(reader, log.ends(topic)):
            message = read(record)
            group = groups.get(message.group_id) if isinstance(message, Trajectory | Vote) else None
            if group is not None and isinstance(message, Trajectory):
                group.add_sample(message, record.position)
            elif group is not None and isinstance(message, Vote):
                group.add_vote(message, record.position)
