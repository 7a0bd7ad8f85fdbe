"""The judging processes of a worker: threads with one process each, fed from one queue. Verdicts come out of order; the
worker votes.

A sample that takes much longer than others blocks only its own process: jobs queued behind it move to another process,
or to a spare.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.faults import Failed
from broker.isolation import PATIENCE_SECONDS, Isolated
from broker.log import Record
from rewarders.config import RewarderTable
from rewarders.rewarder import Reward

BATCH = 32
MUCH_LONGER = 8.0  # a sample that takes this many times the usual time is slow: jobs behind it may get a spare process
SPARE_SECONDS = 30.0  # a spare process that has had no work for this long ends
LOOK_SECONDS = 1.0  # interval at which to check that an idle process is still alive
JOIN_SECONDS = 3.0


class Sample:
    """One sample to be voted on, and where it came from."""

    __slots__ = ("group_id", "index", "named", "record")

    def __init__(self, record: Record, group_id: str, index: int, named: bool) -> None:
        self.record, self.group_id, self.index = record, group_id, index
        self.named = named  # its mix names this rewarder, so its group waits for the vote


@dataclass(slots=True, eq=False)
class Job:
    """A unit of judging: one sample, or all samples of a group."""

    samples: tuple[Sample, ...]
    attempts: int = 0
    seconds: float = 0.0
    outages: int = 0
    """How often what the judge asks was away when this was to be judged."""
    judged_before: int = 0
    """How many others had been judged when that happened first."""
    probe: bool = False
    """It has been judged before, and is judged again only to see whether the judge works."""

    @property
    def payload(self) -> list[bytes]:
        return [sample.record.value for sample in self.samples]


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """The result of a job: a reward or None (an abstention) for each sample, or what failed."""

    job: Job
    answer: list[Reward | None] | Failed


class _Line:
    """The queue of jobs, first in, first out; a proof that the judge works goes first."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._idle = 0
        self._closed = False

    def put(self, jobs: Sequence[Job]) -> None:
        with self._changed:
            for job in jobs:
                if job.probe:
                    self._jobs.appendleft(job)
                else:
                    self._jobs.append(job)
            self._changed.notify(len(jobs))

    def take(self, lanes: int, timeout: float) -> list[Job] | None:
        """A fair share of the jobs for one of ``lanes`` lanes: an empty list after ``timeout`` seconds, None once
        closed.
        """
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._jobs or self._closed, timeout)
            self._idle -= 1
            if self._closed:
                return None
            share = min(BATCH, -(-len(self._jobs) // max(1, lanes)))
            return [self._jobs.popleft() for _ in range(share)]

    def withdraw(self) -> list[Job]:
        with self._changed:
            found, self._jobs = list(self._jobs), deque()
            return found

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def idle(self) -> int:
        """The number of lanes that wait for jobs."""
        return self._idle

    def __bool__(self) -> bool:
        return bool(self._jobs)


def isolated(table: RewarderTable, base: Path) -> Isolated:
    """A judging process for this rewarder, not started yet."""
    settings = table.worker
    return Isolated(
        "rewarders.registry:judge_factory",
        {"use": table.use, "options": table.options, "base": str(base), "flat": list(table.flat)},
        timeout=settings.timeout, memory_mb=settings.memory_mb, start_timeout=settings.start_timeout,
    )  # fmt: skip


class Judges:
    """``wait`` and ``take`` bring verdicts. If the rewarder cannot be made, ``failure`` is set, and the worker must
    raise it.
    """

    def __init__(self, table: RewarderTable, base: Path) -> None:
        settings = table.worker
        self._settings, self._attempts = settings, settings.attempts
        self._table, self._base = table, base
        self._line = _Line()
        self._verdicts: queue.SimpleQueue[Verdict | None] = queue.SimpleQueue()
        self._first: Verdict | None = None
        self._lock = threading.Lock()
        self._lanes: list[tuple[threading.Thread, Isolated]] = []
        self._ended = 0
        self._usual: float | None = None
        self._closing = False
        self.failure: BaseException | None = None
        self.away: Failed | None = None
        """Why the rewarder cannot be made at present, if what it needs for that is away."""
        self.about: Mapping[str, Any] = {}
        """What the rewarder says of itself; empty until the first process has made it."""
        for _ in range(settings.processes):
            self._open(spare=False)

    def put(self, jobs: Sequence[Job]) -> None:
        self._line.put(jobs)

    def withdraw(self) -> list[Job]:
        """Remove and return the jobs that no process has begun."""
        return self._line.withdraw()

    def wait(self, seconds: float) -> None:
        """Block until a verdict comes, the rewarder has been made, or ``seconds`` have passed."""
        if self._first is None:
            with contextlib.suppress(queue.Empty):
                self._first = self._verdicts.get(timeout=seconds)

    def take(self) -> list[Verdict]:
        """Remove and return the verdicts that have come."""
        found = [] if self._first is None else [self._first]
        self._first = None
        while not self._verdicts.empty():
            verdict = self._verdicts.get()
            if verdict is not None:
                found.append(verdict)
        return found

    @property
    def restarts(self) -> int:
        with self._lock:
            return self._ended + sum(max(0, judge.restarts) for _, judge in self._lanes)

    def close(self) -> None:
        """End the processes; samples that are being judged get no verdict."""
        self._closing = True
        with self._lock:
            lanes = list(self._lanes)
        self._line.close()
        deadline = time.monotonic() + JOIN_SECONDS
        for thread, _ in lanes:
            thread.join(max(0.0, deadline - time.monotonic()))
        for _, judge in lanes:
            judge.close()

    # -- the lanes -----------------------------------------------------------------------------------------------------

    def _open(self, spare: bool) -> None:
        judge = isolated(self._table, self._base)
        thread = threading.Thread(target=self._run, args=(judge, spare), name="judge", daemon=True)
        self._lanes.append((thread, judge))
        thread.start()

    def _run(self, judge: Isolated, spare: bool) -> None:
        try:
            while not self._closing:
                self._make(judge)
                batch = self._line.take(len(self._lanes), SPARE_SECONDS if spare else LOOK_SECONDS)
                if batch:
                    self._judge(judge, batch)
                elif batch is None or spare:
                    break
        except BaseException as error:  # the worker raises it
            if not spare and not self._closing:
                self.failure = self.failure or error
                self._verdicts.put(None)
        if spare:
            with self._lock:
                self._ended += judge.restarts + 1
                self._lanes = [lane for lane in self._lanes if lane[1] is not judge]
            judge.close()

    def _make(self, judge: Isolated) -> None:
        """Start the process before there is work for it."""
        try:
            judge.start()
        except Failed as error:
            self.away = error
        else:
            self.away = None
            if not self.about:
                self.about = judge.about
                self._verdicts.put(None)

    def _judge(self, judge: Isolated, batch: list[Job]) -> None:
        mine = len(batch)

        def give_back(places: range) -> None:
            nonlocal mine
            mine = places.start
            self._line.put([batch[place] for place in places])

        def relieve(behind: range, seconds: float) -> bool:
            taken = bool(behind) and self._others(seconds)
            if taken:
                give_back(behind)
            elif not behind and self._line:
                self._others(seconds)
            return taken

        mark = time.monotonic()
        with contextlib.closing(judge.call([job.payload for job in batch], relieve)) as answers:
            for place, answer in answers:
                job, now = batch[place], time.monotonic()
                job.seconds, mark = now - mark, now
                if isinstance(answer, Failed) and answer.kind != "error":
                    give_back(range(place + 1, mine))  # urgent jobs must not wait behind more slow ones
                    return self._hear(job, answer)  # it is tried again behind them
                self._hear(job, answer)

    def _hear(self, job: Job, answer: Any) -> None:
        job.attempts += 1
        if not isinstance(answer, Failed):
            self._usual = job.seconds if self._usual is None else 0.9 * self._usual + 0.1 * job.seconds
            self._verdicts.put(Verdict(job, [None if r is None else Reward.unpack(r) for r in answer]))
        elif answer.kind in ("timeout", "killed") and job.attempts < self._attempts and not self._closing:
            self._line.put([job])
        elif not self._closing:
            self._verdicts.put(Verdict(job, answer))

    def _others(self, seconds: float) -> bool:
        """Whether an idle process, or a new spare, can take the jobs that wait behind a sample that has taken
        ``seconds``.
        """
        with self._lock:
            if self._line.idle:
                return True
            if not self._worth_a_spare(seconds):
                return False
            self._open(spare=True)
            return True

    def _worth_a_spare(self, seconds: float) -> bool:
        room = len(self._lanes) < self._settings.processes + self._settings.spares
        return room and self._usual is not None and seconds > max(PATIENCE_SECONDS, MUCH_LONGER * self._usual)
