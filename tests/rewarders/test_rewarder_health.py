"""Outages and failures told apart, on a clock of the test's own."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.faults import Failed
from broker.log import Record
from rewarders.health import BACK_OFF, SUSPECT_SECONDS, SUSPECTS, Health, Settled
from rewarders.judges import Job, Sample, Verdict
from rewarders.rewarder import Reward

AWAY, BROKEN, SLOW = Failed("outage", "no server"), Failed("error", "no such thing"), Failed("timeout", "too long")
GOOD = [Reward(1.0)]


class Bench:
    """A health with a clock that is turned by hand, and a judge that does what ``answer`` says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.health = Health("r", lambda: self.now, lambda: 0.5)
        self.votes: dict[str, tuple[Any, bool]] = {}
        self.numbers = 0

    def job(self) -> Job:
        self.numbers += 1
        record = Record("t", 0, self.numbers, b"", b"", 0.0)
        return Job((Sample(record, f"g-{self.numbers}", 0, True),))

    def hear(self, job: Job, answer: Any) -> list[str]:
        """The names of those that are settled by this."""
        return self.vote(self.health.take(Verdict(job, answer)))

    def vote(self, settled: list[Settled]) -> list[str]:
        for one in settled:
            name = one.verdict.job.samples[0].group_id
            assert name not in self.votes, "one vote each"
            self.votes[name] = (one.verdict.answer, one.proven)
        return [one.verdict.job.samples[0].group_id for one in settled]

    def due(self, waiting: list[Job] | None = None) -> list[Job]:
        return self.health.due(lambda: waiting or [])


def test_an_outage_is_no_vote_and_all_that_waited_is_judged_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench = Bench()
    assert bench.hear(bench.job(), GOOD) == ["g-1"]
    one, two, waiting = bench.job(), bench.job(), [bench.job()]
    assert bench.hear(one, AWAY) == bench.hear(two, AWAY) == [] and bench.health.out
    assert bench.due(waiting) == [] and bench.health.holding == 3
    assert [r.message for r in caplog.records] == ["rewarder r is out of order and holds its samples until it is back: no server"]  # fmt: skip
    bench.now += BACK_OFF[0]
    assert bench.due() == [one] and bench.due() == [], "one try at a time"
    assert bench.hear(one, AWAY) == [] and bench.due() == []
    bench.now += 2 * BACK_OFF[0]
    assert bench.due() == [two], "in turn"
    assert bench.hear(two, GOOD) == ["g-3"] and not bench.health.out
    assert {job.samples[0].group_id for job in bench.due()} == {"g-2", "g-4"}
    assert "rewarder r is back" in caplog.text and bench.health.page()["state"] == "judging"


def test_tries_become_rarer_up_to_a_bound_and_are_said_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    job = bench.job()
    bench.hear(job, AWAY)
    begun, tries = bench.now, 0
    while bench.now < begun + 600:
        bench.now += 0.25
        for tried in bench.due():
            tries += 1
            bench.hear(tried, AWAY)
    assert 600 / BACK_OFF[1] <= tries <= 600 / BACK_OFF[1] + 8
    assert 600 / 45 <= len(caplog.records) <= 30 and bench.votes == {}
    assert bench.health.page()["held"] == 1 and bench.health.page()["error"] == "no server"


def test_failures_are_believed_once_another_sample_is_judged() -> None:
    bench = Bench()
    bench.hear(bench.job(), GOOD)
    assert bench.hear(bench.job(), SLOW) == [] == bench.hear(bench.job(), BROKEN)
    assert bench.hear(bench.job(), GOOD) == ["g-2", "g-3", "g-4"]
    assert bench.votes["g-2"] == (SLOW, True) and bench.votes["g-3"] == (BROKEN, True)


@pytest.mark.parametrize("many", [True, False])
def test_where_nothing_but_failures_comes_the_judge_is_tried_on_what_it_has_judged(many: bool) -> None:
    bench = Bench()
    bench.hear(bench.job(), GOOD)
    for _ in range(SUSPECTS if many else 1):
        assert bench.due() == []
        bench.hear(bench.job(), SLOW)
    if not many:
        assert bench.due() == []
        bench.now += SUSPECT_SECONDS
    (proof,) = bench.due()
    assert proof.probe and proof.samples[0].group_id == "g-1" and bench.due() == []
    settled = bench.hear(proof, GOOD)
    assert len(settled) == (SUSPECTS if many else 1) and "g-1" not in settled, "a proof is no vote"
    assert all(proven for name, (_, proven) in bench.votes.items())


def test_a_judge_that_fails_on_what_it_has_judged_before_is_out_and_nobody_gets_its_errors() -> None:
    bench = Bench()
    bench.hear(bench.job(), GOOD)
    jobs = [bench.job() for _ in range(SUSPECTS)]
    for job in jobs:
        bench.hear(job, BROKEN)
    (proof,) = bench.due()
    assert bench.hear(proof, BROKEN) == [] and bench.health.out
    assert "what it has judged before" in str(bench.health.error) or bench.health.error == "no such thing"
    late = bench.job()
    assert bench.hear(late, BROKEN) == [], "one that was under way"
    bench.now += BACK_OFF[1]
    (proof,) = bench.due()
    bench.hear(proof, GOOD)
    assert bench.due() == [late, *jobs] or set(bench.due()) <= {late, *jobs}
    assert list(bench.votes) == ["g-1"]


def test_one_sample_that_breaks_the_connection_every_time_does_not_hold_up_the_others_for_ever() -> None:
    bench = Bench()
    poison = bench.job()
    rounds, queue = 0, [poison]
    while poison.samples[0].group_id not in bench.votes:
        rounds += 1
        assert rounds < 200
        queue.append(bench.job())
        done, queue = queue, []
        for job in done:
            bench.hear(job, AWAY if job is poison else GOOD)
        bench.now += 1.0
        queue += bench.due()
    assert bench.votes[poison.samples[0].group_id] == (AWAY, True)


def test_a_judge_that_has_never_judged_has_nothing_to_be_proven_by() -> None:
    bench = Bench()
    assert bench.hear(bench.job(), BROKEN) == [] == bench.health.unproven()
    bench.now += SUSPECT_SECONDS
    assert bench.due() == [] and [s.proven for s in bench.health.unproven()] == [False]
    for _ in range(SUSPECTS):
        bench.hear(bench.job(), BROKEN)
    assert len(bench.health.unproven()) == SUSPECTS
    bench.hear(bench.job(), SLOW)
    assert len(bench.hear(bench.job(), GOOD)) == 2, "unless something is judged in time"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["good", "away", "broken", "slow", "wait", "time"]), max_size=60))
def test_every_sample_gets_one_vote_in_the_end_whatever_happens(events: list[str]) -> None:
    answers = {"good": GOOD, "away": AWAY, "broken": BROKEN, "slow": SLOW}
    bench, queue, given_out = Bench(), list[Job](), 0
    for event in events:
        queue += bench.due()
        if event == "time":
            bench.now += 1.7
        elif event == "wait":
            queue.append(bench.job())
            given_out += 1
        elif queue:
            bench.hear(queue.pop(0), answers[event])
    for _ in range(200):  # from now on all is well
        bench.now += BACK_OFF[1]
        queue += bench.due()
        bench.vote(bench.health.unproven())
        for job in queue:
            bench.hear(job, GOOD)
        queue = []
    assert len(bench.votes) == given_out and bench.health.holding == 0 and not bench.health.out
