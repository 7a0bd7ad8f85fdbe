"""Simulated actors and rewarders: they take real records from the log of the simulation and write real ones, after the time that it takes.

An actor decodes as the local engine and SGLang do, all samples of a step together, with ``retract`` or ``in_place``: samples go on with new
weights. The rest of an engine (a cache that is full, aborts, environments) is not played.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from random import Random

import numpy as np

from actors.config import ActorsTable
from broker.messages import Prompt, Segment, Trajectory, VersionSpan, Vote, decode, encode
from broker.topics import Topics
from headrace.simulation.clock import Busy, Clock
from headrace.simulation.memory import MemoryLog
from headrace.simulation.rates import Rates


@dataclass(slots=True)
class Sample:
    """One answer under way: it ends when its engine has decoded up to ``end`` (in tokens that every sample got)."""

    prompt: Prompt
    index: int
    prompt_tokens: int
    length: int
    end: float = 0.0
    started: float = 0.0
    spans: tuple[VersionSpan, ...] = ()


class Actor:
    """``decoded`` counts the decode steps of its engine; a step takes longer the more samples are in it."""

    def __init__(
        self, name: str, clock: Clock, log: MemoryLog, topics: Topics, table: ActorsTable, rates: Rates, rng: Random
    ) -> None:
        self._name, self._clock, self._log, self._topics, self._rates, self._rng = name, clock, log, topics, rates, rng
        self._slots, self._ahead = table.slots, int(table.queue * table.slots)
        self._consumer = log.consumer([topics.prompts], topics.group("actors"), name)
        self._producer = log.producer()
        self._queue = deque[Sample]()
        self._live: list[tuple[float, int, Sample]] = []
        self._decoded = self._at = 0.0
        self._order, self._group_size = 0, 1
        self._ending = 0
        self.version = -1
        self.busy = Busy(clock)
        self.tokens = 0

    def look(self) -> None:
        """Take prompts while there is room, and begin what there is a slot for."""
        self._pass_time()
        while True:
            room = self._slots + self._ahead - len(self._live) - len(self._queue)
            records = self._consumer.poll(max(1, room // self._group_size) if room > 0 else 0)
            for record in records:
                prompt = decode(record.value)
                assert isinstance(prompt, Prompt)
                self._accept(prompt)
            if not records:
                break
        self._begin()

    def update(self, version: int) -> None:
        """New weights are sampled from: samples under way go on with them."""
        self._pass_time()
        self.version = version
        for _, _, sample in self._live:
            at = sample.length - max(1, round(sample.end - self._decoded))
            if at > sample.spans[-1].start:
                sample.spans = (*sample.spans, VersionSpan(version, at))
        self.look()

    def _accept(self, prompt: Prompt) -> None:
        self._group_size = prompt.group_size
        size, lengths = self._rates.lengths.group(self._rng, prompt.group_size, prompt.sampling.max_new_tokens)
        for index, length in enumerate(lengths):
            self._queue.append(Sample(prompt, index, size, length))

    def _begin(self) -> None:
        before = len(self._live)
        waiting = deque[Sample]()
        while self._queue and len(self._live) < self._slots:
            sample = self._queue.popleft()
            if sample.prompt.min_version > self.version:
                waiting.append(sample)
                continue
            sample.started, sample.spans = self._clock.now, (VersionSpan(max(0, self.version), 0),)
            prompt = self._rates.prompt_token * sample.prompt_tokens / sample.prompt.group_size
            sample.end = self._decoded + sample.length + prompt / max(1e-9, self._step())
            self._order += 1
            heapq.heappush(self._live, (sample.end, self._order, sample))
        self._queue.extendleft(reversed(waiting))
        if len(self._live) and not before:
            self.busy.change(1)
        self._expect()

    def _step(self) -> float:
        """Seconds of a decode step as it is now."""
        return self._rates.decode_step + self._rates.decode_sample * max(1, len(self._live))

    def _pass_time(self) -> None:
        if self._live:
            self._decoded += (self._clock.now - self._at) / self._step()
        self._at = self._clock.now

    def _expect(self) -> None:
        """Look again when the next sample ends, unless something changes before."""
        self._ending += 1
        number = self._ending
        if self._live:
            seconds = (self._live[0][0] - self._decoded) * self._step()
            self._clock.after(seconds, lambda: self._end() if number == self._ending else None)

    def _end(self) -> None:
        self._pass_time()
        while self._live and self._live[0][0] <= self._decoded + 1e-6:
            _, _, sample = heapq.heappop(self._live)
            self._publish(sample)
        if not self._live:
            self.busy.change(-1)
        self.look()

    def _publish(self, sample: Sample) -> None:
        prompt, start, size = sample.prompt, sample.prompt_tokens, sample.prompt_tokens + sample.length
        self.tokens += sample.length
        found = Trajectory(
            group_id=prompt.group_id, index=sample.index, group_size=prompt.group_size, messages=prompt.messages,
            answer=prompt.answer, kind=prompt.kind, metadata=prompt.metadata, rewards=prompt.rewards, purpose=prompt.purpose,
            text="x" * round(self._rates.characters * sample.length), tokens=np.ones(size, np.int32),
            logprobs=np.zeros(size, np.float32),
            segments=(Segment("prompt", 0, start, False), Segment("assistant", start, size, True)),
            versions=tuple(VersionSpan(v, start + at) for v, at in sample.spans), finish_reason="stop",
            sampling=prompt.sampling, engine="simulated", actor=self._name, created=self._clock.now, started=sample.started,
        )  # fmt: skip
        self._producer.send(self._topics.trajectories, prompt.group_id.encode(), encode(found))
        self._producer.flush()


class Judge:
    """One worker of a rewarder: a judgement after the other."""

    def __init__(self, rewarder: str, number: int, clock: Clock, log: MemoryLog, topics: Topics, rates: Rates) -> None:
        self._rewarder, self._clock, self._topics, self._rates = rewarder, clock, topics, rates
        self._consumer = log.consumer(
            [topics.trajectories], topics.group(f"rewarder.{rewarder}"), f"{rewarder}-{number}"
        )
        self._producer = log.producer()
        self._seconds = rates.judgement(rewarder)
        self._at_work = False
        self.busy = Busy(clock)

    def look(self) -> None:
        if self._at_work:
            return
        found = self._consumer.poll(1)
        if not found:
            return
        self._at_work = True
        sample = decode(found[0].value)
        assert isinstance(sample, Trajectory)
        waits = max(0.0, found[0].timestamp + self._rates.judge_wait - self._clock.now)
        self._clock.after(waits, lambda: self._judge(sample))

    def _judge(self, sample: Trajectory) -> None:
        """Judge what has arrived; the wait for it before was no work."""
        self.busy.change(1)
        self._clock.after(self._seconds + self._rates.judge_each, lambda: self._vote(sample))

    def _vote(self, sample: Trajectory) -> None:
        vote = Vote(
            sample.group_id,
            sample.index,
            self._rewarder,
            "value",
            self._value(sample),
            seconds=self._seconds,
            created=self._clock.now,
        )
        self._producer.send(self._topics.rewards, sample.group_id.encode(), encode(vote))
        self._producer.flush()
        self._at_work = False
        self.busy.change(-1)
        self.look()

    def _value(self, sample: Trajectory) -> float:
        """Of a flat group the same for all, else another one for each."""
        flat = Random(sample.group_id).random() < self._rates.flat
        return 1.0 if flat else sample.index / sample.group_size
