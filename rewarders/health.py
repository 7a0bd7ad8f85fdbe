"""Distinguishes a judge that is broken from answers that make it fail, and holds samples back while the judge is
unavailable.

A failure counts against the answer once the judge has succeeded on another sample after it. If all samples fail, one
that was judged before is judged again: if that succeeds, the failures are the answers' own; if not, this is an outage,
and no votes are cast.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from broker.faults import Failed
from rewarders.judges import Job, Verdict

log_ = logging.getLogger("rewarder")
SUSPECTS = 8  # after this many failures in a row the judge has to prove that it works
SUSPECT_SECONDS = 2.0  # or if nothing has been judged for this long after a failure
BACK_OFF = (0.5, 30.0)  # seconds before the second attempt, and the longest delay before a later one
OUTAGES = 6  # a sample that has ended in an outage this often, while others were judged, is itself the cause
SAY_SECONDS = 20.0  # shortest interval between two messages about outages
NEWS_SECONDS = 10.0  # interval at which the learner is told of an outage


@dataclass(frozen=True, slots=True)
class Settled:
    """A verdict that can be published as votes. ``proven``: the judge is known to work, so a failure is the answer's
    fault.
    """

    verdict: Verdict
    proven: bool


class Health:
    """The health of one rewarder; messages use ``name``. ``clock`` returns seconds, ``chance`` random numbers from 0 to
    1.
    """

    def __init__(
        self, name: str, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        self._name, self._clock, self._chance = name, clock, chance
        self._judged: Job | None = None  # the last job that succeeded
        self._suspects: list[tuple[Verdict, float]] = []
        self._held: deque[Job] = deque()
        self._tried: Job | None = None  # the retry or proof in progress
        self._out = False
        self._since = self._due = 0.0
        self._said = clock() - SAY_SECONDS
        self._told, self._told_at = False, 0.0  # the state last reported to the learner, and when
        self._tries = 0
        self._successes = 0
        self.error = ""
        """The last failure."""

    @property
    def out(self) -> bool:
        """Whether there is an outage now."""
        return self._out

    def page(self) -> dict[str, Any]:
        """The current state as JSON-like data, for the daemon's HTTP page."""
        now = self._clock()
        state = "outage" if self._out else "judging"
        seconds = round(now - self._since, 1) if self._out else 0.0
        return {
            "rewarder": self._name, "state": state, "seconds": seconds, "error": self.error, "held": self.holding,
            "next_try": round(max(0.0, self._due - now), 1) if self._out else 0.0,
        }  # fmt: skip

    def news(self) -> bool | None:
        """The state to report to the learner now (True: outage), or None if there is nothing to report.

        It is reported when an outage begins and ends, and repeatedly while it lasts.
        """
        now = self._clock()
        if self._out == self._told and not (self._out and now - self._told_at >= NEWS_SECONDS):
            return None
        self._told, self._told_at = self._out, now
        return self._out

    @property
    def holding(self) -> int:
        """The number of samples held back."""
        jobs = [*self._held, *(verdict.job for verdict, _ in self._suspects)]
        return sum(len(job.samples) for job in jobs)

    def take(self, verdict: Verdict) -> list[Settled]:
        """Take in a verdict; returns all verdicts that it settles."""
        tried = verdict.job is self._tried
        if tried:
            self._tried = None
        if not isinstance(verdict.answer, Failed):
            return self._good(verdict)
        self.error = verdict.answer.why
        if verdict.answer.kind == "outage":
            return self._away(verdict, verdict.answer, tried)
        if verdict.job.probe:
            self._begin(f"it fails on everything, also on what it has judged before: {self.error}", tried)
            return []
        if self._out and self._judged is None:
            self._end()  # the judge's service answers again
        if self._out:
            self._held.append(_anew(verdict.job))
            return []
        self._suspects.append((verdict, self._clock()))
        return []

    def _good(self, verdict: Verdict) -> list[Settled]:
        self._successes += 1
        self._judged = verdict.job
        self._end()
        settled = [Settled(v, True) for v, _ in self._suspects]
        self._suspects = []
        return settled if verdict.job.probe else [*settled, Settled(verdict, True)]

    def _away(self, verdict: Verdict, failed: Failed, tried: bool) -> list[Settled]:
        job = verdict.job
        if job.outages == 0:
            job.judged_before = self._successes
        job.outages += 1
        if job.outages >= OUTAGES and self._successes - job.judged_before >= OUTAGES:
            return [Settled(verdict, True)]
        if not job.probe:
            self._held.append(_anew(job))
        self._begin(failed.why, tried)
        return []

    def hold(self, job: Job) -> None:
        """Hold back a job that arrives during an outage."""
        self._held.append(job)

    def lost(self, why: str) -> None:
        """Record that the judge cannot be created at present."""
        self.error = why
        if not self._out:
            self._begin(why, False)

    def found(self) -> None:
        """Record that the judge has been created."""
        if self._out and not self._held and self._tried is None and self._judged is None:
            self._end()

    def _begin(self, why: str, tried: bool) -> None:
        """Begin an outage, or prolong it if another attempt failed (``tried``)."""
        now = self._clock()
        if tried or not self._out:
            delay = min(BACK_OFF[1], BACK_OFF[0] * 2 ** min(self._tries, 16))
            self._tries += 1
            self._due = now + delay * (0.5 + self._chance())
        if not self._out:
            self._out, self._since = True, now
        self._held.extend(_anew(verdict.job) for verdict, _ in self._suspects)
        self._suspects = []
        if now - self._said >= SAY_SECONDS:
            self._said = now
            log_.warning("rewarder %s is out of order and holds its samples until it is back: %s", self._name, why)

    def _end(self) -> None:
        if self._out:
            log_.info("rewarder %s is back after %.0f s", self._name, self._clock() - self._since)
        self._out, self._tries = False, 0

    def unproven(self) -> list[Settled]:
        """Failures that count without proof: the judge has never succeeded, so there is no sample to test it with."""
        if self._judged is not None or not self._wants_proof():
            return []
        settled = [Settled(verdict, False) for verdict, _ in self._suspects]
        self._suspects = []
        return settled

    def _wants_proof(self) -> bool:
        waited = self._clock() - self._suspects[0][1] if self._suspects else 0.0
        return len(self._suspects) >= SUSPECTS or waited >= SUSPECT_SECONDS

    def due(self, withdraw: Callable[[], list[Job]]) -> list[Job]:
        """The jobs to judge now: all that were held once the outage is over, one sample while it lasts, or the proof
        that is needed.

        ``withdraw`` returns the jobs that no process has begun; during an outage they are held here.
        """
        now = self._clock()
        if self._out:
            if self._tried is not None:
                return []
            self._held.extend(withdraw())
            return self._try() if now >= self._due else []
        if self._held:
            held, self._held = list(self._held), deque()
            return held
        return self._proof() if self._wants_proof() and self._tried is None else []

    def _try(self) -> list[Job]:
        """The job to retry: one that failed in the outage, in turn; else one that was judged before; else any."""
        job = next((job for job in self._held if job.outages), None)
        if job is None and (self._judged is not None or not self._held):
            return self._proof()
        job = job or self._held[0]
        job.outages = max(1, job.outages)
        self._held.remove(job)
        self._tried = job
        return [job]

    def _proof(self) -> list[Job]:
        if self._judged is None:
            return []
        self._tried = replace(self._judged, attempts=0, outages=0, probe=True)
        return [self._tried]


def _anew(job: Job) -> Job:
    job.attempts = 0
    return job
