"""The audit of a run: every prompt has exactly one fate, no sample is trained twice, every position is readable, no supervised step is without
a record of what it read.

It reads the log as a stream and holds only the groups that have no end yet. It may begin at a seal that an earlier audit left,
and read the samples of only some of the manifests. What retention was asked to remove is counted, not held against the run.
"""

from __future__ import annotations

import time
from contextlib import closing

from broker.errors import DecodeError, RunFault
from broker.log import Log
from broker.messages import Artefact, DeadLetter, Evaluation, Manifest, Position, Seal, StepResult, encode
from broker.topics import Topics
from headrace.reading.audit import Audit
from headrace.reading.duplicates import count_duplicates
from headrace.reading.fates import Fates
from headrace.reading.heads import head_of
from headrace.reading.history import History
from headrace.reading.lineage import lineage
from headrace.reading.origin import origin_of, told
from headrace.reading.records import read, records, scan
from headrace.reading.supervised import Supervised

RESUMED = ("fed", "trained", "dropped", "dead_lettered", "evaluated", "collected", "steps", "samples_trained", "supervised_steps",
           "documents", "reread", "dead_letters", "duplicate_samples", "expired", "looked_into")  # fmt: skip
"""The counts that an audit takes over from a seal."""


def verify(log: Log, topics: Topics, most: int = 0) -> Audit:
    """Audit the whole log of a run; of at most about ``most`` manifests, evenly chosen, the samples are read (0: of all)."""
    return _Verification(log, topics, most).run()


def verify_on(log: Log, topics: Topics) -> Audit:
    """Audit what has come since the newest seal, and write a new seal after what was found sound. Without a seal everything is audited."""
    verification = _Verification(log, topics, 0, newest_seal(log, topics))
    audit = verification.run()
    if not audit.problem_count:
        with closing(log.producer()) as producer:
            producer.send(topics.steps, Seal.TYPE.encode(), encode(verification.seal()))
            producer.flush()
    return audit


def newest_seal(log: Log, topics: Topics) -> Seal | None:
    """The newest seal in the steps topic, looked for from its end."""
    begin, end, reach = log.begins(topics.steps)[0], log.ends(topics.steps)[0], 64
    while end > begin:
        start, reach = max(begin, end - reach), reach * 8
        found = [r for r in records(log, topics.steps, {0: start}, {0: end}) if head_of(r).type == Seal.TYPE]
        if found:
            seal = read(found[-1])
            return seal if isinstance(seal, Seal) else None
        end = start
    return None


class _Verification:
    """One audit. ``most`` and ``seal`` as in ``verify`` and ``verify_on``."""

    def __init__(self, log: Log, topics: Topics, most: int, seal: Seal | None = None) -> None:
        self._log, self._topics = log, topics
        self._begun, self._ends = seal, log.ends(topics.steps)
        self.audit = Audit()
        self._fates = Fates(log, topics, self.audit).begin(seal)
        self._supervised = Supervised(self.audit).begin(seal.counts if seal is not None else {})
        self._trajectories: dict[int, int] = {}
        self._deadletters: dict[int, int] = {}
        self._every = 1
        if most:
            newest = History.recent(log, topics, 8).newest_manifest()
            self._every = max(1, -(-newest.step // most)) if newest is not None else 1
        if seal is not None:
            self._resume(seal)

    def _resume(self, seal: Seal) -> None:
        for name in RESUMED:
            setattr(self.audit, name, seal.counts.get(name, 0))
        self.audit.dropped_by_reason = dict(seal.reasons)
        self.audit.sealed = seal.steps
        if seal.manifest >= 0:
            with closing(self._log.reader(self._topics.steps)) as reader:
                manifest = read(reader.get([Position(0, seal.manifest)])[0])
            if not isinstance(manifest, Manifest):
                raise RunFault(
                    f"the seal at {seal.steps} of the steps names a manifest at {seal.manifest} that is none"
                )
            self._fates.newest = seal.manifest, manifest.state

    def run(self) -> Audit:
        audit, start = self.audit, self._begun.steps if self._begun is not None else 0
        with lineage(self._log, self._topics, audit) as samples:
            for record in records(self._log, self._topics.steps, {0: start}, self._ends):
                message = read(record)
                if isinstance(message, DecodeError):
                    audit.problem(f"record {record.offset} of the steps cannot be read: {message.reason}")
                elif isinstance(message, Manifest | Evaluation | Artefact):
                    self._fates.take(record.offset, record.timestamp, message)
                elif isinstance(message, StepResult):
                    self._supervised.take(message)
                if isinstance(message, Artefact):
                    samples.look_into(message)
                if isinstance(message, Manifest) and message.kind == "step" and message.step % self._every == 0:
                    samples.look_into(message)
        self._fates.finish()
        origin = origin_of(self._log, self._topics)
        audit.forked_from = told(origin) if origin is not None else ""
        self._count_others()
        return audit

    def _count_others(self) -> None:
        """Dead letters; and the samples that came twice, unless that would read all trajectories of a run of which only a part is audited."""
        begun = self._begun
        self._deadletters = dict(begun.deadletters) if begun is not None else {}
        for record, message in scan(self._log, self._topics.deadletters, self._deadletters):
            self._deadletters[record.partition] = record.offset + 1
            self.audit.dead_letters += isinstance(message, DeadLetter)
        if self._every == 1:
            found, self._trajectories = count_duplicates(
                self._log, self._topics, begun.trajectories if begun is not None else {}
            )
            self.audit.duplicate_samples += found

    def seal(self) -> Seal:
        """What says that all that was read is sound."""
        fates, audit = self._fates, self.audit
        offset, _ = fates.newest
        counts = {name: getattr(audit, name) for name in RESUMED} | self._supervised.counts()
        return Seal(
            self._ends[0], fates.version, offset, counts, dict(audit.dropped_by_reason), fates.fed, self._trajectories,
            self._deadletters, tuple(fates.open), time.time(),
        )  # fmt: skip
