"""A small log made by hand: every record of a run, so that a test can damage exactly one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from broker.messages import (
    ChatMessage,
    Dropped,
    Evaluation,
    GroupRef,
    Manifest,
    Message,
    PlannerState,
    Position,
    Prompt,
    SampleRef,
    Sampling,
    Segment,
    StepResult,
    Trajectory,
    VersionSpan,
    Vote,
    VoteRef,
    encode,
)
from broker.run import Run
from broker.sqlite.log import SqliteLog
from broker.topics import Topics

MIX = {"accuracy": 1.0, "format": 0.5}


class Handmade:
    """Two trained steps of two groups each, one dropped, one dead-lettered, one evaluated and one outstanding group."""

    def __init__(self, directory: Path, retention: float = 0.0) -> None:
        self.topics = Topics("small", 2, retention)
        self.log = SqliteLog(directory)
        self.log.create(self.topics.specs())
        self._producer = self.log.producer()
        self.prompts: dict[str, Position] = {}
        self.refs: dict[str, GroupRef] = {}

    def write(self, topic: str, message: Message | bytes, partition: int | None = None) -> Position:
        data = message if isinstance(message, bytes) else encode(message)
        self._producer.send(topic, b"key", data, partition)
        return self._producer.flush()[-1]

    def prompt(self, group_id: str, **changes: Any) -> Position:
        asked = Prompt(
            group_id,
            (ChatMessage("user", "2+2?"),),
            2,
            answer="4",
            rewards=MIX,
            purpose=changes.pop("purpose", "train"),
        )
        position = self.write(self.topics.prompts, replace(asked, **changes))
        self.prompts.setdefault(group_id, position)
        return position

    def sample(self, group_id: str, index: int, version: int = 0, tokens: int = 3, **changes: Any) -> Position:
        n = 2 + tokens
        spans = (Segment("prompt", 0, 2, False), Segment("assistant", 2, n, True))
        logprobs = np.zeros(n, np.float32)
        logprobs[2:] = -0.5
        made = Trajectory(group_id, index, 2, (ChatMessage("user", "2+2?"),), "4", "", {}, MIX, "train", "it is 4", np.arange(n, dtype=np.int32), logprobs, spans, (VersionSpan(version, 2),), "stop", Sampling(), actor="actor-0")  # fmt: skip
        return self.write(self.topics.trajectories, replace(made, **changes))

    def vote(
        self, group_id: str, index: int, rewarder: str, outcome: str = "value", value: float = 1.0, **changes: Any
    ) -> Position:
        given = value if outcome == "value" else None
        cast = Vote(group_id, index, rewarder, outcome, given, "as it should be")
        return self.write(self.topics.rewards, replace(cast, **changes))

    def group(self, group_id: str, version: int = 0) -> GroupRef:
        """A prompt with its two samples and their votes."""
        at = self.prompt(group_id)
        samples = []
        for index in range(2):
            where = self.sample(group_id, index, version)
            votes = tuple(VoteRef(name, self.vote(group_id, index, name, value=float(index))) for name in MIX)
            samples.append(SampleRef(index, where, votes))
        self.refs[group_id] = GroupRef(group_id, at, tuple(samples))
        return self.refs[group_id]

    def state(self, *outstanding: str) -> PlannerState:
        """All that has been fed so far is known; ``outstanding`` is under way."""
        return PlannerState(fed=self.log.ends(self.topics.prompts), outstanding=outstanding)

    def manifest(self, step: int, *groups: GroupRef, **changes: Any) -> Manifest:
        made = Manifest(step, changes.pop("stage", 1), changes.pop("kind", "step"), groups, **changes)
        self.write(self.topics.steps, made)
        return made

    def result(self, step: int, metrics: Mapping[str, float], stage: int = 1, seconds: float = 0.5) -> None:
        self.write(self.topics.steps, StepResult(step, stage, step - 1, metrics, {"optimizer": seconds}, 1.0))

    def supervised(
        self, step: int, first: int, stage: int = 0, sha256: str = "aa", count: int = 4, **rows: Any
    ) -> None:
        """A step of supervised training on ``count`` documents."""
        read = rows or {"corpus": ((first, count),)}
        self.write(
            self.topics.steps,
            StepResult(0, stage, step, {"loss": 1.0}, {}, 1.0, (first, count, sha256 + str(step)), read),
        )

    def evaluation(self, name: str, value: float, *group_ids: str, dropped: tuple[Dropped, ...] = ()) -> None:
        self.write(self.topics.steps, Evaluation(name, 1, 1, 100, 2, value, (value, value), value, (value, value), (0, 0), 3.0, group_ids, dropped))  # fmt: skip

    def whole(self) -> Handmade:
        """The sound run that the tests begin with."""
        self.manifest(1, stage=0, kind="weights", weights="checkpoints/base")
        first, second = self.group("p-0@0"), self.group("p-1@0")
        self.prompt("q-0@before", purpose="eval", collection="before")
        for lost in ("p-2@0", "p-3@0", "p-6@0"):
            self.prompt(lost)
        self.manifest(2, first, second, state=self.state("q-0@before", "p-2@0", "p-3@0", "p-6@0"))
        self.result(2, {"tokens_trained": 12.0, "staleness_mean": 1.0, "staleness_max": 1.0})
        self.evaluation("before", 0.25, "q-0@before")
        third, fourth = self.group("p-4@0", 1), self.group("p-5@0", 2)
        gone = (Dropped("p-2@0", "stale", 0), Dropped("p-3@0", "dead_letter", 0))
        self.manifest(3, third, fourth, dropped=gone, state=self.state("p-6@0"))
        self.result(3, {"tokens_trained": 10.0, "staleness_mean": 0.0, "staleness_max": 9.0})
        self.result(3, {"tokens_trained": 12.0, "staleness_mean": 0.5, "staleness_max": 1.0})  # a redo: this one holds
        self.evaluation("after", 0.75)
        return self

    def run(self, directory: Path) -> Run:
        """This log as the run in ``directory`` (which must hold it as ``log``)."""
        (directory / "run.toml").write_text(
            '[run]\nname = "small"\nmodel = "m"\nseed = 5\n[broker]\npartitions = 2\n[data]\np = "x"\n'
            '[[stage]]\nkind = "sft"\n[[stage]]\nkind = "rl"\n'
        )
        return Run.open(directory / "run.toml", [], directory)

    def close(self) -> None:
        self._producer.close()
        self.log.close()
