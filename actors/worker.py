"""The actor: takes prompts from the log, samples them, and publishes each sample as soon as it is finished.

At least once: a prompt is committed when all of its samples are durable. Actors go on sampling when the learner is away.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from actors.config import ActorsTable
from actors.engine import Completion, Engine, Request
from actors.prompting import prompt_tokens, trajectory_of
from broker.daemon import keep_turning
from broker.errors import DecodeError, EngineError, MessageError
from broker.log import Consumer, Log, Producer, Record
from broker.messages import DeadLetter, IntArray, Prompt, decode, encode
from broker.topics import Topics
from broker.watermark import Watermark
from monitoring.daemon import Stop
from monitoring.metrics import ActorMetrics, BrokerMetrics, SystemMetrics

log_ = logging.getLogger("actor")
GROUP = "actors"
ATTEMPTS = 3  # of a sample that the engine gave impossible numbers for
FLUSH_SECONDS = 0.05
POLL_SECONDS = 0.05


@dataclass(slots=True)
class _Work:
    """A prompt under way."""

    record: Record
    prompt: Prompt
    tokens: IntArray
    missing: set[int]
    attempts: dict[int, int] = field(default_factory=dict)


class ActorWorker:
    """Joins one engine to the log. Driven by ``run`` on the thread that samples."""

    def __init__(
        self, name: str, log: Log, topics: Topics, engine: Engine, tokenizer: Any, table: ActorsTable,
        metrics: ActorMetrics, broker: BrokerMetrics, system: SystemMetrics,
    ) -> None:  # fmt: skip
        self._name, self._topics, self._engine, self._tokenizer = name, topics, engine, tokenizer
        self._ahead = int(table.queue * table.slots)
        self._log, self._give_back = log, table.give_back
        self._asked = time.monotonic()  # when the engine could last be asked
        self._consumer: Consumer | None = self._join()
        self._producer: Producer = log.producer()
        self._metrics, self._broker, self._system = metrics, broker, system
        self._mark = Watermark()
        self._work: dict[str, _Work] = {}
        self._finished: list[Record] = []  # handled, but perhaps not durable yet
        self._flushed = time.monotonic()
        self._group_size = 1  # of the newest prompt: what the next one will probably take

    def run(self, stop: Stop) -> None:
        """Sample until ``stop``; what is running then is left to the redelivery of its prompt."""
        keep_turning(self.turn, stop, self._broker.unavailable)

    def turn(self) -> None:
        """One round: take prompts, sample a while, publish what is finished, commit."""
        if not self._takes_part():
            self._engine.poll(POLL_SECONDS)
            return
        self._take()
        started, rested = time.monotonic(), self._engine.resting
        done = self._engine.poll(POLL_SECONDS)
        if rested or not self._work:
            self._system.waited("turn" if rested else "no_prompts", time.monotonic() - started)
        for completion in done:
            self._publish(completion)
        self._metrics.inflight.set(sum(len(w.missing) for w in self._work.values()))
        self._metrics.weight_version.set(self._engine.version)
        if self._finished or done:
            self._flush()

    def _join(self) -> Consumer:
        return self._log.consumer([self._topics.prompts], self._topics.group(GROUP), self._name)

    def _takes_part(self) -> bool:
        """Join or leave as the engine comes and goes: while it holds no weights to sample from, others do this actor's work."""
        now = time.monotonic()
        if self._engine.version >= 0:
            self._asked = now
            if self._consumer is None:
                log_.info("the engine is back")
                self._consumer = self._join()
        elif self._consumer is not None and now - self._asked > self._give_back:
            log_.warning("the engine is away: %d prompts are given back", len(self._work))
            for group_id in self._work:
                self._engine.cancel(group_id)
            self._work.clear()
            self._leave()
            self._mark = Watermark()
        return self._consumer is not None

    def _leave(self) -> None:
        """Publish and commit what is finished, and leave the group."""
        self._flushed = 0.0
        self._flush()
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _take(self) -> None:
        """Take prompts while the engine has room, and keep the membership alive in any case."""
        assert self._consumer is not None
        room = self._engine.room() + self._ahead
        while True:
            records = self._consumer.poll(max(1, room // self._group_size) if room > 0 else 0, 0.0)
            for record in records:
                self._mark.start(record)
                self._accept(record)
                room -= self._group_size
            if not records or room <= 0:
                return

    def _accept(self, record: Record) -> None:
        try:
            prompt = decode(record.value)
            if not isinstance(prompt, Prompt):
                raise DecodeError(f"a {prompt.TYPE} in the prompts topic", record.value)
        except DecodeError as error:
            return self._bury(record, record.key.decode("utf-8", "replace"), error.reason)
        if prompt.group_id in self._work:  # redelivered while it is under way
            self._finished.append(record)
            return None
        try:
            self._engine.check(prompt.sampling)
            tokens = prompt_tokens(self._tokenizer, prompt)
            indices = tuple(range(prompt.group_size))
            self._engine.submit(Request(prompt.group_id, indices, tokens, prompt.sampling, prompt.min_version))
        except EngineError as error:
            return self._bury(record, prompt.group_id, str(error))
        self._group_size = prompt.group_size
        self._work[prompt.group_id] = _Work(record, prompt, tokens, set(indices))
        return None

    def _publish(self, done: Completion) -> None:
        work = self._work.get(done.group_id)
        if work is None or done.index not in work.missing:
            return
        if done.finish_reason == "abort":
            self._metrics.aborted("update").inc()
            return self._again(work, done.index)
        if done.finish_reason == "refused":
            return self._give_up(work, done, done.text)
        try:
            trajectory = trajectory_of(work.prompt, work.tokens, done, self._engine.name, self._name)
            data = encode(trajectory)
        except MessageError as error:
            work.attempts[done.index] = work.attempts.get(done.index, 0) + 1
            self._metrics.aborted("invalid").inc()
            if work.attempts[done.index] < ATTEMPTS:
                return self._again(work, done.index)
            return self._give_up(work, done, str(error))
        self._producer.send(self._topics.trajectories, done.group_id.encode(), data)
        self._metrics.generated_tokens.inc(len(done.tokens))
        self._metrics.prompt_tokens.inc(len(work.tokens))
        self._metrics.cached_prompt_tokens.inc(done.cached)
        self._metrics.generation_seconds.observe(time.time() - done.started)
        work.missing.discard(done.index)
        if not work.missing:
            del self._work[done.group_id]
            self._finished.append(work.record)
        return None

    def _again(self, work: _Work, index: int) -> None:
        prompt = work.prompt
        self._engine.submit(Request(prompt.group_id, (index,), work.tokens, prompt.sampling, prompt.min_version))

    def _give_up(self, work: _Work, done: Completion, why: str) -> None:
        """One sample can never be had, so its group is of no use."""
        self._engine.cancel(done.group_id)
        del self._work[done.group_id]
        self._bury(work.record, done.group_id, f"sample {done.index}: {why}")

    def _bury(self, record: Record, group_id: str, error: str) -> None:
        letter = DeadLetter(
            record.topic,
            record.partition,
            record.offset,
            record.key,
            record.value,
            error,
            self._name,
            group_id,
            created=time.time(),
        )
        self._producer.send(self._topics.deadletters, record.topic.encode(), encode(letter))
        self._finished.append(record)
        log_.warning("prompt %s: %s", group_id, error, extra={"group": group_id})

    def _flush(self) -> None:
        """Make durable what is finished, then commit it."""
        now = time.monotonic()
        if now - self._flushed < FLUSH_SECONDS and self._work:
            return
        self._flushed = now
        self._producer.flush()
        for record in self._finished:
            self._mark.done(record)
        if self._finished:
            self._finished = []
            if self._consumer is not None:
                self._mark.keep(self._consumer.assignment())
                self._consumer.commit(self._mark.offsets())

    def close(self) -> None:
        self._leave()
        self._producer.close()
