"""Tells a judge that fails from answers that it fails on, and holds the samples while what it needs is away.

A failure is believed once the judge has judged something else after it. Where nothing but failures comes, a sample that was judged before
is judged again: if that still works, the failures are the answers' own; if not, this is an outage, and nobody gets a vote for it.
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
SUSPECT_SECONDS = 2.0  # the same after one failure, if nothing has been judged since
BACK_OFF = (0.5, 30.0)  # seconds before the second attempt, and at most before any later one
OUTAGES = 6  # a sample that has ended in an outage this often, while others were judged, is itself the cause
SAY_SECONDS = 20.0  # shortest interval between two messages about outages
NEWS_SECONDS = 10.0  # interval at which the learner is told of an outage


@dataclass(frozen=True, slots=True)
class Settled:
    """A verdict to be voted. ``proven``: the judge is known to have worked, so that a failure is the answer's own doing."""

    verdict: Verdict
    proven: bool


class Health:
    """One rewarder's; ``name`` is for its sentences. ``clock`` gives seconds, ``chance`` numbers in [0, 1)."""

    def __init__(
        self, name: str, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        self._name, self._clock, self._chance = name, clock, chance
        self._judged: Job | None = None  # the last one that went well
        self._suspects: list[tuple[Verdict, float]] = []
        self._held: deque[Job] = deque()
        self._tried: Job | None = None  # the try or proof that is under way
        self._out = False
        self._since = self._due = 0.0
        self._said = clock() - SAY_SECONDS
        self._told, self._told_at = False, 0.0  # what the learner was told last, and when
        self._tries = 0
        self._successes = 0
        self.error = ""
        """The last failure."""

    @property
    def out(self) -> bool:
        """Whether there is an outage now."""
        return self._out

    def page(self) -> dict[str, Any]:
        """The current state, for whoever asks."""
        now = self._clock()
        state = "outage" if self._out else "judging"
        seconds = round(now - self._since, 1) if self._out else 0.0
        return {
            "rewarder": self._name, "state": state, "seconds": seconds, "error": self.error, "held": self.holding,
            "next_try": round(max(0.0, self._due - now), 1) if self._out else 0.0,
        }  # fmt: skip

    def news(self) -> bool | None:
        """Whether there is an outage, if the learner is to be told now: one begins, one lasts, or one is over."""
        now = self._clock()
        if self._out == self._told and not (self._out and now - self._told_at >= NEWS_SECONDS):
            return None
        self._told, self._told_at = self._out, now
        return self._out

    @property
    def holding(self) -> int:
        """Samples that wait here."""
        jobs = [*self._held, *(verdict.job for verdict, _ in self._suspects)]
        return sum(len(job.samples) for job in jobs)

    def take(self, verdict: Verdict) -> list[Settled]:
        """A verdict has come; returns those that are settled by it."""
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
            self._end()  # what it asks is there
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
        """A job that has come during an outage."""
        self._held.append(job)

    def lost(self, why: str) -> None:
        """The judge cannot even be made at present."""
        self.error = why
        if not self._out:
            self._begin(why, False)

    def found(self) -> None:
        """The judge has been made."""
        if self._out and not self._held and self._tried is None and self._judged is None:
            self._end()

    def _begin(self, why: str, tried: bool) -> None:
        """There is an outage; ``tried``: another try has shown that it lasts."""
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
        """Failures that have to be believed: the judge has never judged anything that it could be tried on."""
        if self._judged is not None or not self._wants_proof():
            return []
        settled = [Settled(verdict, False) for verdict, _ in self._suspects]
        self._suspects = []
        return settled

    def _wants_proof(self) -> bool:
        waited = self._clock() - self._suspects[0][1] if self._suspects else 0.0
        return len(self._suspects) >= SUSPECTS or waited >= SUSPECT_SECONDS

    def due(self, withdraw: Callable[[], list[Job]]) -> list[Job]:
        """What is to be judged now: all that was held once the outage is over, one sample while it lasts, or the proof that is wanted.

        ``withdraw`` gives back the jobs that no process has begun on: in an outage they wait here.
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
        """One sample that met the outage, in turn; where there is none, one that was judged before, or any."""
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
