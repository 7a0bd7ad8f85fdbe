"""Makes a sound log of many steps without a model: every group is fed, sampled, judged and trained as a run's would be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from broker.log import Log, Producer
from broker.messages import (
    ChatMessage,
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
)  # fmt: skip
from broker.run import Run
from broker.topics import Topics

MIX = {"accuracy": 1.0, "format": 0.5}
METRICS = {f"metric_{number}": 0.5 for number in range(40)}
RUN_FILE = """[run]
name = "scale"
model = "nobody/has-this"
rewards = { accuracy = 1.0, format = 0.5 }
[data]
prompts = { use = "learner.data.sums:SignedSums" }
[rewarders.accuracy]
use = "rewarders.math:MathAccuracy"
[rewarders.format]
use = "rewarders.format:Format"
[[stage]]
kind = "rl"
data = "prompts"
steps = 1000000
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """``groups`` of ``samples`` a step; ``tokens`` of a response."""

    groups: int = 64
    samples: int = 4
    tokens: int = 64


class Maker:
    """Writes a run's log, one step after the other; the groups of a step are fed while the step before is planned."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "run.toml").write_text(RUN_FILE)
        self.run = Run.open(directory / "run.toml", [], directory)
        self._log: Log = self.run.open_log()
        self._producer: Producer = self._log.producer()
        self._topics: Topics = self.run.topics
        self._shape = shape
        self._trajectory, self._vote = _template(shape)
        self._step = 0
        self._waiting: list[tuple[str, Position]] = []

    def steps(self, count: int) -> None:
        if not self._step:
            self._write(self._topics.steps, Manifest(1, 0, "weights", weights="checkpoints/base", created=time.time()))
            self._step = 1
            self._waiting = self._feed(2)
        for _ in range(count):
            self._take(self._step + 1)
            self._step += 1

    def checkpoint(self) -> None:
        """One of the newest version, as far as its place in the run is concerned."""
        from learner.training.checkpoint import Checkpoints, Progress

        offset = self._log.ends(self._topics.steps)[0]
        progress = Progress(self._step, 0, self._step - 1, False, offset)
        Checkpoints(self.run.directory / "checkpoints").save(progress, {}, _empty, keep=2)

    def _feed(self, step: int) -> list[tuple[str, Position]]:
        ids = [f"prompts-{step}-{number}@0" for number in range(self._shape.groups)]
        for number, group_id in enumerate(ids):
            messages = (ChatMessage("user", "Compute 3+7-2+9 mod 10."),)
            prompt = Prompt(group_id, messages, self._shape.samples, answer="7", rewards=MIX, created=time.time())
            self._producer.send(
                self._topics.prompts, group_id.encode(), encode(prompt), number % self._topics.partitions
            )
        return list(zip(ids, self._producer.flush(), strict=True))

    def _take(self, step: int) -> None:
        waiting, self._waiting = self._waiting, self._feed(step + 1)
        samples, votes = self._sample(waiting, step - 1), self._judge(waiting)
        groups = tuple(
            GroupRef(group_id, at, tuple(next(samples)._replace(votes=next(votes)) for _ in range(self._shape.samples)))
            for group_id, at in waiting
        )
        ends = {topic: self._log.ends(getattr(self._topics, topic)) for topic in ("prompts", "trajectories", "rewards")}
        state = PlannerState(
            {"prompts": step * self._shape.groups}, tuple(group_id for group_id, _ in self._waiting), ends["prompts"],
            _low(self._waiting), ends["trajectories"], ends["rewards"],
        )  # fmt: skip
        self._write(self._topics.steps, Manifest(step, 0, "step", groups, state=state, created=time.time()))
        phases = {"wait_data": 0.1, "pack": 0.01, "forward_backward": 0.5, "optimizer": 0.05}
        metrics = {**METRICS, "reward_mean": 0.5, "staleness_mean": 1.0, "tokens_trained": 1.0}
        self._write(self._topics.steps, StepResult(step, 0, step - 1, metrics, phases, time.time()))

    def _sample(self, waiting: list[tuple[str, Position]], version: int) -> Iterator[SampleRef]:
        wire, topic = self._trajectory, self._topics.trajectories
        wire["versions"], wire["started"] = [[version, 8]], time.time()
        wire["created"] = time.time()
        for group_id, at in waiting:
            for index in range(self._shape.samples):
                wire["group_id"], wire["index"] = group_id, index
                self._producer.send(topic, group_id.encode(), msgpack.packb(wire), at.partition)
        places = iter(self._producer.flush())
        return (SampleRef(index, next(places), ()) for _ in waiting for index in range(self._shape.samples))

    def _judge(self, waiting: list[tuple[str, Position]]) -> Iterator[tuple[VoteRef, ...]]:
        wire, topic = self._vote, self._topics.rewards
        wire["created"] = time.time()
        for group_id, at in waiting:
            for index in range(self._shape.samples):
                for name in MIX:
                    wire["group_id"], wire["index"], wire["rewarder"] = group_id, index, name
                    wire["value"] = float(index % 2)
                    self._producer.send(topic, group_id.encode(), msgpack.packb(wire), at.partition)
        places = iter(self._producer.flush())
        return (tuple(VoteRef(name, next(places)) for name in MIX) for _ in waiting for _ in range(self._shape.samples))

    def _write(self, topic: str, message: Message) -> None:
        self._producer.send(topic, b"key", encode(message))
        self._producer.flush()

    def close(self) -> None:
        self._producer.close()
        self._log.close()


def _empty(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"")


def _low(waiting: list[tuple[str, Position]]) -> dict[int, int]:
    low: dict[int, int] = {}
    for _, (partition, offset) in waiting:
        low[partition] = min(low.get(partition, offset), offset)
    return low


def _template(shape: Shape) -> tuple[dict[str, Any], dict[str, Any]]:
    """A sample and a vote as they are on the wire, to be given their names."""
    n = 8 + shape.tokens
    spans = (Segment("prompt", 0, 8, False), Segment("assistant", 8, n, True))
    logprobs = np.concatenate([np.zeros(8, np.float32), np.full(shape.tokens, -0.5, np.float32)])
    sample = Trajectory(
        "g", 0, shape.samples, (ChatMessage("user", "Compute 3+7-2+9 mod 10."),), "7", "", {}, MIX, "train", "it is 7 " * 16,
        np.arange(n, dtype=np.int32), logprobs, spans, (VersionSpan(0, 8),), "stop", Sampling(), "local", "actor-0",
    )  # fmt: skip
    vote = Vote("g", 0, "r", "value", 1.0, "as it should be", 0.001)
    return (
        {**sample.pack(), "t": Trajectory.TYPE, "v": 1},
        {**vote.pack(), "t": Vote.TYPE, "v": 1},
    )
