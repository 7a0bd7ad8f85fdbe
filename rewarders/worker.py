"""The rewarder's daemon: judges the samples whose mix names it, each once, and writes its votes to the log.

Every judgement runs in a child process under a deadline; a failure is an error vote, never a reward of 0. Samples are judged
out of order, and the contiguous low watermark is committed behind the durable votes.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from broker.daemon import keep_turning
from broker.errors import DecodeError, HeadraceError, RunFault
from broker.isolation import Failed, Isolated
from broker.log import Log, Record
from broker.messages import Trajectory, Vote, decode, encode
from broker.topics import Topics
from broker.watermark import Watermark
from monitoring.daemon import Stop
from monitoring.metrics import BrokerMetrics, RewarderMetrics, SystemMetrics
from rewarders.config import RewarderTable
from rewarders.rewarder import Reward

log_ = logging.getLogger("rewarder")
IN_FLIGHT = 512
BATCH = 32
FLUSH_SECONDS = 0.05
HOPELESS = (
    256  # first verdicts of a worker, all errors: the rewarder is broken, and sampling for it would go on for ever
)


@dataclass(slots=True)
class _Job:
    """A sample on its way through a judging process."""

    record: Record
    group_id: str
    index: int
    attempts: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What became of a sample: a reward, None for an abstention, or what failed."""

    job: _Job
    answer: Reward | Failed | None

    def vote(self, rewarder: str) -> Vote:
        job, answer = self.job, self.answer
        common = (job.seconds, job.attempts, time.time())
        if answer is None:
            return Vote(job.group_id, job.index, rewarder, "abstain", None, "", *common)
        if isinstance(answer, Failed):
            return Vote(job.group_id, job.index, rewarder, "error", None, str(answer), *common, cause=answer.kind)
        return Vote(
            job.group_id, job.index, rewarder, "value", answer.value, answer.why, *common,
            answer=answer.answer, cause=answer.cause, spans=answer.spans, logprobs=answer.logprobs,
        )  # fmt: skip


class Judges:
    """Threads with a judging process each, fed from one queue."""

    def __init__(self, table: RewarderTable, base: Path) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self.verdicts: queue.SimpleQueue[_Verdict] = queue.SimpleQueue()
        self.failure: BaseException | None = None
        self._attempts = table.attempts
        options = {"use": table.use, "options": table.options, "base": str(base)}
        self._isolated = [
            Isolated("rewarders.registry:judge_factory", options, timeout=table.timeout, memory_mb=table.memory_mb)
            for _ in range(table.processes)
        ]
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in self._isolated]
        for thread in self._threads:
            thread.start()

    def put(self, job: _Job) -> None:
        self._jobs.put(job)

    @property
    def restarts(self) -> int:
        return sum(max(0, i.restarts) for i in self._isolated)

    def close(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(8)
        for isolated in self._isolated:
            isolated.stop()

    def _run(self, isolated: Isolated) -> None:
        try:
            while True:
                batch = self._batch()
                if batch is None:
                    return
                self._judge(isolated, batch)
        except BaseException as error:  # the worker raises it
            self.failure = error

    def _batch(self) -> list[_Job] | None:
        job = self._jobs.get()
        if job is None:
            return None
        batch = [job]
        while len(batch) < BATCH and not self._jobs.empty():
            job = self._jobs.get()
            if job is None:
                self._jobs.put(None)
                break
            batch.append(job)
        return batch

    def _judge(self, isolated: Isolated, batch: list[_Job]) -> None:
        def let_go(places: range) -> None:
            for place in places:
                self._jobs.put(batch[place])

        mark = time.monotonic()
        others = let_go if len(self._isolated) > 1 else None
        for place, answer in isolated.call([job.record.value for job in batch], others):
            job, now = batch[place], time.monotonic()
            job.attempts += 1
            job.seconds, mark = now - mark, now
            if not isinstance(answer, Failed):
                self.verdicts.put(_Verdict(job, None if answer is None else Reward.unpack(answer)))
            elif answer.kind != "error" and job.attempts < self._attempts:
                self._jobs.put(job)
            else:
                self.verdicts.put(_Verdict(job, answer))


class RewarderWorker:
    """One member of the consumer group of one rewarder."""

    def __init__(
        self, name: str, rewarder: str, log: Log, topics: Topics, table: RewarderTable, base: Path,
        metrics: RewarderMetrics, broker: BrokerMetrics, system: SystemMetrics,
    ) -> None:  # fmt: skip
        self._rewarder, self._topics = rewarder, topics
        self._consumer = log.consumer([topics.trajectories], topics.group(f"rewarder.{rewarder}"), name)
        self._producer = log.producer()
        self._judges = Judges(table, base)
        self._metrics, self._broker, self._system = metrics, broker, system
        self._mark = Watermark()
        self._in_flight = 0
        self._finished: list[Record] = []
        self._flushed = time.monotonic()
        self._mean: float | None = None
        self._restarts = 0
        self._errors_only = 0  # verdicts so far, while all are errors; -1 once one was not

    def run(self, stop: Stop) -> None:
        keep_turning(self.turn, stop, self._broker.unavailable)

    def turn(self) -> None:
        """One round: take samples, publish verdicts, commit."""
        room = IN_FLIGHT - self._in_flight
        wait = 0.002 if self._in_flight else 0.05
        started = time.monotonic()
        records = self._consumer.poll(min(room, 128), wait)
        if not records and not self._in_flight:
            self._system.waited("no_samples", time.monotonic() - started)
        for record in records:
            self._mark.start(record)
            self._accept(record)
        if self._in_flight and not records and self._judges.verdicts.empty():
            time.sleep(0.001)
        while not self._judges.verdicts.empty():
            self._vote(self._judges.verdicts.get())
        if self._judges.failure is not None:
            raise HeadraceError(f"rewarder {self._rewarder}: {self._judges.failure}") from self._judges.failure
        if self._finished and (time.monotonic() - self._flushed > FLUSH_SECONDS or not self._in_flight):
            self._flush()

    def _accept(self, record: Record) -> None:
        """Judge it if its mix names this rewarder. What cannot be decoded is the learner's to dead-letter."""
        try:
            sample = decode(record.value)
        except DecodeError:
            sample = None
        if not isinstance(sample, Trajectory) or self._rewarder not in sample.rewards:
            self._metrics.skipped.inc()
            self._finished.append(record)
            return
        self._in_flight += 1
        self._judges.put(_Job(record, sample.group_id, sample.index))

    def _vote(self, verdict: _Verdict) -> None:
        job = verdict.job
        self._in_flight -= 1
        vote = verdict.vote(self._rewarder)
        self._producer.send(self._topics.rewards, job.group_id.encode(), encode(vote))
        self._hopeful(vote)
        self._finished.append(job.record)
        self._metrics.results(vote.outcome).inc()
        self._metrics.latency.observe(job.seconds)
        if vote.value is not None:
            self._metrics.reward.observe(vote.value)
            self._mean = vote.value if self._mean is None else 0.99 * self._mean + 0.01 * vote.value
            self._metrics.mean.set(self._mean)

    def _hopeful(self, verdict: Vote) -> None:
        """Raises RunFault where a rewarder has never judged anything and fails on all that it gets."""
        if verdict.outcome != "error" or self._errors_only < 0:
            self._errors_only = -1
            return
        self._errors_only += 1
        if self._errors_only == HOPELESS:
            raise RunFault(
                f"rewarder {self._rewarder} failed on each of its first {HOPELESS} samples, the last time with: {verdict.why}"
            )

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        self._producer.flush()
        for record in self._finished:
            self._mark.done(record)
        self._finished = []
        self._mark.keep(self._consumer.assignment())
        self._consumer.commit(self._mark.offsets())
        if self._judges.restarts > self._restarts:
            self._metrics.restarts.inc(self._judges.restarts - self._restarts)
            self._restarts = self._judges.restarts

    def close(self) -> None:
        """Publish what is judged and leave; what is not is judged again by whoever takes over."""
        self._judges.close()
        while not self._judges.verdicts.empty():
            self._vote(self._judges.verdicts.get())
        self._flush()
        self._consumer.close()
        self._producer.close()
