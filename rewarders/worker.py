"""The rewarder's daemon: judges the samples whose mix names it, each once, and writes its votes to the log.

Every judgement runs in a child process under a deadline; a failure becomes an error vote, never a reward of 0, and an
outage gives no vote. Samples are judged out of order. Once votes are durable, the offset below which every sample is
done is committed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from broker.daemon import keep_going
from broker.errors import DecodeError, HeadraceError, RunFault
from broker.faults import Failed
from broker.log import Log, Record
from broker.messages import Outage, Trajectory, Vote, decode, encode
from broker.outbox import Outbox
from broker.topics import Topics
from broker.watermark import Watermark
from monitoring.daemon import Stop
from monitoring.metrics import BrokerMetrics, RewarderMetrics, SystemMetrics
from rewarders.config import RewarderTable
from rewarders.groups import Groups
from rewarders.health import Health, Settled
from rewarders.judges import Job, Judges, Sample
from rewarders.rewarder import Reward

log_ = logging.getLogger("rewarder")
IN_FLIGHT = 512
PACE_SECONDS = 0.05  # length of a round while samples come one by one: they are read, judged and written together
BATCH = 128
COMMIT_SECONDS = 0.5
HOPELESS = (
    256  # if a worker's first so many verdicts are all errors, the rewarder is broken, and sampling would never end
)


class RewarderWorker:
    """One member of the consumer group of one rewarder.

    ``group`` replaces the rewarder's own consumer group, to judge history. ``voted`` are the samples (group id, index)
    that already have this rewarder's vote: a second vote is recorded as a shadow. ``pace`` is the length of a round in
    seconds while samples come one by one: votes come up to two rounds later, and a longer round costs less.
    """

    def __init__(
        self, name: str, rewarder: str, log: Log, topics: Topics, table: RewarderTable, base: Path,
        metrics: RewarderMetrics, broker: BrokerMetrics, system: SystemMetrics,
        health: Health | None = None, group: str = "", voted: Collection[tuple[str, int]] | None = None,
        pace: float = PACE_SECONDS,
    ) -> None:  # fmt: skip
        self._name, self._rewarder, self._topics, self._log, self._table = name, rewarder, topics, log, table
        self._group = topics.group(group or f"rewarder.{rewarder}")
        self._voted, self._pace = voted, pace
        self._consumer = log.consumer([topics.trajectories], self._group, name)
        self._outbox = Outbox(log.producer())
        self._judges = Judges(table, base)
        self._health = health or Health(rewarder)
        self._groups = Groups(table.worker.group_patience)
        self._metrics, self._broker, self._system = metrics, broker, system
        self._mark = Watermark()
        self._in_flight = 0  # samples that are judged, or held until they can be
        self._arrived: list[Job] = []
        self._finished: list[Record] = []
        self._committed = time.monotonic()
        self._mean: float | None = None
        self._restarts = 0
        self._errors_only = 0  # verdicts so far, while all are errors; -1 once one was not

    def run(self, stop: Stop, ends: Mapping[int, int] | None = None) -> None:
        """Judge until ``stop``, or until all below ``ends`` (offsets by partition) is judged by this group."""
        over = (lambda: False) if ends is None else (lambda: self._past(ends))
        keep_going(self.round, stop, self._broker.unavailable, over)

    def round(self) -> None:
        """One round: take samples, publish verdicts, commit."""
        if not self._ready():
            self._tell()
            self._write()
            self._consumer.poll(0)  # keeps the membership
            return
        started = time.monotonic()
        pending = self._in_flight or self._finished
        records = self._consumer.poll(min(IN_FLIGHT - self._in_flight, BATCH), 0.0 if pending else 2 * self._pace)
        if not records and not pending:
            self._system.waited("no_samples", time.monotonic() - started)
        for record in records:
            self._mark.start(record)
            self._accept(record)
        self._judges.put([*self._arrived, *self._health.due(self._judges.withdraw)])
        self._arrived = []
        if self._in_flight and len(records) < BATCH:
            time.sleep(self._pace)  # let verdicts gather: waking up for a single one would gain nothing
        for verdict in self._judges.take():
            for settled in self._health.take(verdict):
                self._settle(settled)
        for settled in self._health.unproven():
            self._settle(settled)
        self._metrics.outage.set(self._health.out)
        self._tell()
        self._give_up()
        self._write()

    def _ready(self) -> bool:
        """Whether the rewarder has been made. Raises HeadraceError if it cannot be."""
        if self._judges.failure is not None:
            raise HeadraceError(f"rewarder {self._rewarder}: {self._judges.failure}") from self._judges.failure
        if self._judges.away is not None:
            self._health.lost(str(self._judges.away.why))
            self._metrics.outage.set(1)
        elif self._judges.about:
            self._health.found()
        if not self._judges.about:
            self._judges.wait(self._pace)
            self._judges.take()
        return bool(self._judges.about)

    def _accept(self, record: Record) -> None:
        """Judge the sample if its mix names this rewarder. A record that cannot be decoded is skipped: the learner
        dead-letters it.
        """
        try:
            sample = decode(record.value)
        except DecodeError:
            sample = None
        if not isinstance(sample, Trajectory) or not self._wants(sample):
            self._metrics.skipped.inc()
            self._finished.append(record)
            return
        mine = Sample(record, sample.group_id, sample.index, self._counts(sample))
        if not self._judges.about["per_group"]:
            return self._judge((mine,))
        whole, aside = self._groups.add(mine, sample.group_size)
        if aside is not None:
            self._finished.append(aside.record)
        if whole:
            self._judge(whole)

    def _wants(self, sample: Trajectory) -> bool:
        if self._rewarder in sample.rewards or self._voted is not None:
            return True
        return self._table.shadow and sample.purpose == "train"

    def _counts(self, sample: Trajectory) -> bool:
        """Whether the sample's group waits for this vote; else it is a shadow."""
        return self._rewarder in sample.rewards and (sample.group_id, sample.index) not in (self._voted or ())

    def _judge(self, samples: tuple[Sample, ...]) -> None:
        self._in_flight += len(samples)
        if self._health.out:
            self._health.hold(Job(samples))
        else:
            self._arrived.append(Job(samples))

    # -- votes ---------------------------------------------------------------------------------------------------------

    def _settle(self, settled: Settled) -> None:
        job, answer = settled.verdict.job, settled.verdict.answer
        if isinstance(answer, Failed):
            wrong = settled.proven and answer.kind in ("timeout", "killed") and self._on_timeout == "wrong"
            fault = Reward(0.0, answer.why, cause=answer.kind) if wrong else answer
            answers: list[Reward | Failed | None] = [fault] * len(job.samples)
        else:
            answers = list(answer)
        for sample, one in zip(job.samples, answers, strict=True):
            self._vote(sample, self._vote_of(sample, job, one))
        self._metrics.latency.observe(job.seconds)

    @property
    def _on_timeout(self) -> str:
        return self._table.worker.on_timeout or ("wrong" if self._judges.about.get("bounded") else "error")

    def _vote_of(self, sample: Sample, job: Job, answer: Reward | Failed | None) -> Vote:
        common = (job.seconds / len(job.samples), job.attempts, time.time())
        place = (sample.group_id, sample.index, self._rewarder)
        version, shadow = str(self._judges.about.get("version", "")), not sample.named
        if answer is None:
            return Vote(*place, "abstain", None, "", *common, shadow=shadow, version=version)
        if isinstance(answer, Failed):
            return Vote(*place, "error", None, str(answer), *common, cause=answer.kind, shadow=shadow, version=version)
        return Vote(
            *place, "value", answer.value, answer.why, *common, answer=answer.answer, cause=answer.cause,
            shadow=shadow, version=version, spans=answer.spans, logprobs=answer.logprobs,
        )  # fmt: skip

    def _vote(self, sample: Sample, vote: Vote) -> None:
        self._in_flight -= 1
        self._outbox.send(self._topics.rewards, vote.group_id.encode(), encode(vote))
        self._finished.append(sample.record)
        self._hopeful(vote)
        self._metrics.results(vote.outcome).inc()
        if vote.cause:
            self._metrics.causes(vote.cause).inc()
        if vote.value is not None:
            self._metrics.reward.observe(vote.value)
            self._mean = vote.value if self._mean is None else 0.99 * self._mean + 0.01 * vote.value
            self._metrics.mean.set(self._mean)

    def _hopeful(self, vote: Vote) -> None:
        """Raises RunFault if the first ``HOPELESS`` samples have all failed, unless the rewarder is a shadow."""
        if vote.outcome != "error" or self._errors_only < 0:
            self._errors_only = -1
            return
        self._errors_only += 1
        if self._errors_only == HOPELESS:
            why = f"rewarder {self._rewarder} failed on each of its first {HOPELESS} samples, the last time with: {vote.why}"
            if not self._table.shadow:
                raise RunFault(why)
            log_.error("%s", why)

    def _give_up(self) -> None:
        late = self._groups.given_up()
        if late:
            names = sorted({sample.group_id for sample in late})
            log_.warning("%d groups never came whole and get no vote, the first is %s", len(names), names[0])
            self._finished.extend(sample.record for sample in late)

    def _tell(self) -> None:
        """Report an outage to the learner, so that it waits; it never waits for a shadow or for history."""
        away = self._health.news()
        if away is None or self._table.shadow or self._voted is not None:
            return
        error = self._health.error if away else ""
        news = Outage(self._rewarder, self._name, away, error, self._health.holding, time.time())
        self._outbox.send(self._topics.rewards, self._rewarder.encode(), encode(news))

    # -- the log -------------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        if self._finished or self._outbox.pending:
            self._flush()
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self._commit()

    def _flush(self) -> None:
        """Make the votes durable; only then is a record done."""
        self._outbox.flush()
        for record in self._finished:
            self._mark.done(record)
        self._finished = []

    def _commit(self) -> None:
        self._committed = time.monotonic()
        held = self._consumer.assignment()
        self._mark.keep(held)
        self._groups.keep(held)
        self._mark.commit(self._consumer)
        if self._judges.restarts > self._restarts:
            self._metrics.restarts.inc(self._judges.restarts - self._restarts)
            self._restarts = self._judges.restarts

    def _past(self, ends: Mapping[int, int]) -> bool:
        """Whether this group has committed all below ``ends``."""
        if self._in_flight or self._finished:
            return False
        done, begins = (
            self._log.committed(self._group, self._topics.trajectories),
            self._log.begins(self._topics.trajectories),
        )
        return all(max(done.get(p, 0), begins.get(p, 0)) >= end for p, end in ends.items())

    def close(self) -> None:
        """Publish the verdicts and leave the group; its next member judges the remaining samples."""
        self._judges.close()
        for verdict in self._judges.take():
            for settled in self._health.take(verdict):
                self._settle(settled)
        self._flush()
        self._commit()
        self._consumer.close()
        self._outbox.close()
