"""A planner over a real log, with actors and rewarders that a test plays by hand."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from broker.log import Log
from broker.messages import Prompt, Sampling, Segment, Trajectory, VersionSpan, Vote, decode, encode
from broker.topics import Topics
from learner.data.sums import SignedSums
from learner.planning.collect import Collections
from learner.planning.feed import Ask, Feed, Feeding, Schedule
from learner.planning.join import Join, read_all
from learner.planning.planner import Planner
from learner.planning.plans import StagePlan
from learner.planning.recovery import read_outstanding, read_tail
from learner.tables import LearnerTable

TOPICS = Topics("t", partitions=3)


class Ring:
    """The planner, and what its actors and rewarders would do."""

    def __init__(self, log: Log, **table: Any) -> None:
        self.log, self.out = log, log.producer()
        fields = {"groups_per_step": 2, "group_size": 2, "max_lag": 1, **table}
        self.table = LearnerTable.model_validate(fields)
        schedule = Schedule("sums", SignedSums(), 0)
        ask = Ask(self.table.group_size, {"r": 1.0}, Sampling())
        self.stage = StagePlan(0, self.table, (Feeding(schedule, ask),), 1000)
        self.prompts = log.reader(TOPICS.prompts)
        self.version = 0
        self.start()

    def start(self) -> None:
        """What a learner does when it starts: find the outstanding groups in the log."""
        tail = read_tail(self.log, TOPICS, 0)
        found = read_outstanding(self.log, TOPICS, tail)
        self.join = Join(self.log, TOPICS, 320, found.state, "test")
        self.join.add(found.groups)
        prompts = self.log.producer()
        feed = Feed(prompts, TOPICS.prompts, TOPICS.partitions, found.cursor, found.missing, TOPICS.deadletters)
        feed.eras.update(found.state.eras)
        version = tail.newest.step if tail.newest else 0
        self.planner = Planner(
            self.join, feed, self.log.producer(), TOPICS.steps, version, time.time(), found.fed, expired=found.expired
        )
        self.collections = Collections(self.join, self.planner._steps, TOPICS.steps)

    def fed(self) -> list[Prompt]:
        """The prompts that are new to the actors."""
        records = read_all(self.prompts, self.log.ends(TOPICS.prompts))
        return sorted((m for m in (decode(r.value) for r in records) if isinstance(m, Prompt)), key=lambda p: p.number)

    def answer(self, prompt: Prompt, rewards: list[float], version: int | None = None, length: int = 3) -> None:
        for index, reward in enumerate(rewards):
            self.sample(prompt, index, version, length)
            self.vote(prompt, index, reward)
        self.out.flush()

    def sample(self, prompt: Prompt, index: int, version: int | None = None, length: int = 3, token: int = 5) -> None:
        count = 2 + length
        segments = (Segment("prompt", 0, 2, False), Segment("assistant", 2, count, True))
        it = Trajectory(
            prompt.group_id, index, prompt.group_size, prompt.messages, prompt.answer, prompt.kind, prompt.metadata, prompt.rewards,
            prompt.purpose, r"\boxed{1}", np.full(count, token, np.int32), np.zeros(count, np.float32), segments,
            (VersionSpan(self.version if version is None else version, 2),), "stop", prompt.sampling,
        )  # fmt: skip
        self.out.send(TOPICS.trajectories, prompt.group_id.encode(), encode(it))

    def vote(
        self, prompt: Prompt, index: int, reward: float | None, outcome: str = "value", rewarder: str = "r"
    ) -> None:
        vote = Vote(prompt.group_id, index, rewarder, outcome, reward)
        self.out.send(TOPICS.rewards, prompt.group_id.encode(), encode(vote))

    def pump(self) -> None:
        while self.join.pump(0.0):
            pass
        self.planner.bury()

    def plan(self) -> Any:
        self.pump()
        return self.planner.plan(self.stage)

    def execute(self, planned: Any) -> None:
        self.planner.executed_step(planned.manifest)
        self.version = planned.manifest.step
