"""The planner over a real log: credits, gates, pacing, dead letters, and what a restart finds again."""

from __future__ import annotations

import gc
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plannertools import TOPICS, Ring

from broker.errors import DataError, LogError, RunFault
from broker.log import Log
from broker.messages import (
    ChatMessage,
    DeadLetter,
    Dropped,
    Era,
    Evaluation,
    Outage,
    Prompt,
    Sampling,
    Settled,
    Trajectory,
    Vote,
    decode,
    encode,
)
from broker.open import open_log
from headrace.reading.verify import verify
from learner.data.source import PromptRow
from learner.data.sums import SignedSums
from learner.planning.collect import Collection
from learner.planning.feed import Ask, Feeding, Schedule
from learner.planning.groups import Group
from learner.planning.intervals import wilson
from learner.planning.join import read_all
from learner.planning.plans import StagePlan
from learner.planning.records import ManifestReader
from learner.planning.recovery import read_tail
from learner.planning.rewards import Judged, reward_of
from learner.planning.scores import Answers, cons_at_k, pass_at_1, pass_at_k, score
from learner.planning.thread import Planning, PlanningThread
from learner.tables import Benchmark


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = open_log(f"sqlite://{tmp_path}")
    log.create(TOPICS.specs())
    yield log
    log.close()


def test_credits_bound_what_is_outstanding_and_come_back_with_execution(log: Log) -> None:
    ring = Ring(log)
    assert ring.planner.refill(ring.stage) == 4 and ring.planner.refill(ring.stage) == 0
    first = ring.fed()
    assert [p.min_version for p in first] == [0, 0, 0, 0]
    for prompt in first:
        ring.answer(prompt, [0, 1])
    planned = ring.plan()
    assert [g.group_id for g in planned.manifest.groups] == [p.group_id for p in first[:2]]
    assert ring.planner.refill(ring.stage) == 0, "a planned group holds its credit until it is executed"
    ring.execute(planned)
    assert ring.planner.refill(ring.stage) == 2
    assert [p.min_version for p in ring.fed()] == [1, 1], "their place in the line is two steps away"


def test_prompts_go_to_the_partition_with_the_fewest_outstanding_groups(log: Log) -> None:
    ring = Ring(log, groups_per_step=3)
    ring.planner.refill(ring.stage)
    assert list(log.ends(TOPICS.prompts).values()) == [2, 2, 2]


def test_gates_drop_with_a_reason_and_give_the_credit_back(log: Log) -> None:
    ring = Ring(log, groups_per_step=2, max_lag=2)
    ring.planner.refill(ring.stage)
    a, b, c, d, *_ = ring.fed()
    ring.answer(a, [1, 1])
    ring.sample(b, 0)
    ring.vote(b, 0, 1.0)
    ring.sample(b, 1)
    ring.vote(b, 1, None, "error")
    ring.answer(c, [0, 1])
    ring.answer(d, [1, 0])
    planned = ring.plan()
    assert [(x.group_id, x.reason) for x in planned.manifest.dropped] == [
        (a.group_id, "zero_variance"),
        (b.group_id, "unjudged"),
    ]
    assert [g.group_id for g in planned.manifest.groups] == [c.group_id, d.group_id]
    assert planned.manifest.metrics["zero_variance_group_ratio"] == pytest.approx(1 / 4)
    assert planned.manifest.metrics["reward_mean"] == pytest.approx((1 + 1 + 1 + 0 + 1 + 1 + 0) / 7)
    assert ring.planner.refill(ring.stage) == 2


def test_groups_without_variance_fill_a_step_once_enough_were_dropped_for_it(log: Log) -> None:
    ring = Ring(log, groups_per_step=2, max_lag=2, max_resampling=1.0)
    ring.planner.refill(ring.stage)
    a, b, c, d, e, f = ring.fed()
    for flat in (a, b, c):
        ring.answer(flat, [1, 1])
    assert ring.plan() is None
    ring.answer(d, [0, 1])
    planned = ring.plan()
    assert [x.group_id for x in planned.manifest.dropped] == [a.group_id, b.group_id]
    assert [g.group_id for g in planned.manifest.groups] == [d.group_id, c.group_id]
    assert planned.manifest.metrics["zero_variance_group_ratio"] == pytest.approx(3 / 4)
    ring.execute(planned)
    for more in (e, f):
        ring.answer(more, [0, 0])
    assert ring.plan() is None, "the next step counts anew"


def test_a_failed_vote_takes_its_sample_out_of_the_group_and_is_no_zero(log: Log) -> None:
    ring = Ring(log, groups_per_step=1, group_size=3)
    ring.planner.refill(ring.stage)
    prompt = ring.fed()[0]
    for index, (reward, outcome) in enumerate([(1.0, "value"), (None, "error"), (0.5, "value")]):
        ring.sample(prompt, index)
        ring.vote(prompt, index, reward, outcome)
    ring.out.flush()
    planned = ring.plan()
    assert [(j.trajectory.index, j.reward) for j in planned.groups[0]] == [(0, 1.0), (2, 0.5)]
    reader = ManifestReader(log, TOPICS)
    assert reader.groups(planned.manifest) == planned.groups, "the log gives what the planner saw"
    reader.close()


def test_a_shadow_vote_is_never_trained_on_and_its_error_removes_no_sample(log: Log) -> None:
    ring = Ring(log, groups_per_step=1)
    ring.planner.refill(ring.stage)
    prompt = ring.fed()[0]
    for index, vote in enumerate([("value", 9.0), ("error", None)]):
        shadow = Vote(prompt.group_id, index, "r", *vote, shadow=True)
        ring.out.send(TOPICS.rewards, prompt.group_id.encode(), encode(shadow))
    ring.answer(prompt, [0.0, 1.0])
    assert [j.reward for j in ring.plan().groups[0]] == [0.0, 1.0] and ring.join.duplicates == 0


def test_a_late_group_is_waited_for_and_then_trained(log: Log) -> None:
    ring = Ring(log, groups_per_step=1, max_lag=1)
    ring.planner.refill(ring.stage)
    slow, quick = ring.fed()
    ring.sample(slow, 0, version=0)
    ring.out.flush()
    ring.answer(quick, [0, 1])
    planned = ring.plan()
    assert planned is not None and planned.manifest.groups[0].group_id == quick.group_id
    ring.execute(planned)
    ring.planner.refill(ring.stage)
    ring.answer(ring.fed()[0], [0, 1])
    assert ring.plan() is None, "step 2 without the slow group would make it too old"
    ring.sample(slow, 1, version=1)
    ring.vote(slow, 0, 1.0)
    ring.vote(slow, 1, 0.0)
    ring.out.flush()
    planned = ring.plan()
    assert planned.manifest.groups[0].group_id == slow.group_id
    assert planned.manifest.step - 1 - min(s.trajectory.oldest_version for s in planned.groups[0]) == 1


def test_what_is_incomplete_at_its_deadline_is_dropped(log: Log) -> None:
    ring = Ring(log, groups_per_step=1, max_lag=0, deadline=5.0)
    ring.planner.refill(ring.stage)
    ring.planner.expire(ring.table, time.time() + 1)
    assert len(ring.join.groups) == 1
    ring.planner.expire(ring.table, time.time() + 6)
    assert not ring.join.groups and ring.planner.refill(ring.stage) == 1


def test_no_deadline_runs_while_a_rewarder_of_the_mix_is_out_of_order(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    ring = Ring(log, groups_per_step=1, max_lag=0, deadline=5.0)
    ring.planner.refill(ring.stage)
    (prompt,) = ring.fed()

    def say(rewarder: str, away: bool, created: float = 0.0, worker: str = "r-0") -> float:
        news = Outage(rewarder, worker, away, "no server", 3, created or time.time())
        ring.out.send(TOPICS.rewards, rewarder.encode(), encode(news))
        ring.out.flush()
        ring.pump()
        return time.time()

    now = say("other", True)
    say("r", True, now - 3600)  # what a restart reads once more
    assert ring.join.outages.lasting(now).keys() == {"other"} and ring.join.outages.over(["r"], now) == 0
    begun = say("r", True)
    say("r", True)
    assert caplog.text.count("rewarder r (r-0) is out of order") == 1, "it is said when it begins"
    ring.planner.expire(ring.table, begun + 20)
    assert ring.join.groups.keys() == {prompt.group_id} and ring.join.outages.lasting(begun)["r"][1] == "no server"
    with caplog.at_level("INFO", "learner"):
        ended = say("r", False)
    assert "rewarder r (r-0) is back after 0 s" in caplog.text and "r" not in ring.join.outages.lasting(ended)
    ring.planner.expire(ring.table, ended + 4)
    assert ring.join.groups, "the deadline counts from the end of the outage"
    ring.planner.expire(ring.table, ended + 6)
    assert [d.reason for d in ring.planner._dropped] == ["incomplete"] and not ring.join.dead


def test_a_worker_that_falls_silent_in_an_outage_is_not_waited_for_forever(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    ring = Ring(log, groups_per_step=1, max_lag=0, deadline=5.0)
    ring.planner.refill(ring.stage)
    ring.out.send(TOPICS.rewards, b"r", encode(Outage("r", "r-0", True, "no server", 3, time.time())))
    ring.out.flush()
    ring.pump()
    assert "rewarder r (r-0) is out of order and holds 3 samples" in caplog.text and "no server" in caplog.text
    ring.planner.expire(ring.table, time.time() + 34)
    assert ring.join.groups and "says nothing any longer" in caplog.text
    ring.planner.expire(ring.table, time.time() + 36)
    assert not ring.join.groups


def test_a_collection_loses_no_group_to_an_outage(log: Log) -> None:
    ring = Ring(log)
    schedule = Schedule("heldout", SignedSums(seed=9), 0, shuffle=False)
    ring.planner.ask_collection(Feeding(schedule, Ask(2, {"r": 1.0}, Sampling(), "eval", "held")), 1, 0)
    asked = time.time()
    ring.collections.expect(
        Collection("held", 0, 0, 5.0, asked),
        lambda c, groups, lost: score(Benchmark(k=2, rewarder="r"), c.name, c.step, c.stage, groups, lost, time.time()),
    )
    ring.out.send(TOPICS.rewards, b"r", encode(Outage("r", "r-0", True, "no server", 3, asked)))
    ring.out.flush()
    ring.pump()
    assert not ring.collections.settle(asked + 20) and ring.join.groups
    (ending,) = ring.collections.settle(time.time() + 36)
    assert [d.reason for d in ending.dropped] == ["incomplete"]


def test_under_heavy_tails_nothing_is_dropped_and_long_groups_are_trained(log: Log) -> None:
    """A simulated ring: generation takes a log-normal time; every group that is fed is trained, however long it takes."""
    ring = Ring(log, groups_per_step=4, group_size=2, max_lag=4)
    rng = random.Random(0)
    running: list[tuple[float, Prompt, int, int]] = []
    trained: list[int] = []
    lengths: dict[str, int] = {}
    clock = 0.0
    while len(trained) < 4 * 60:
        ring.planner.refill(ring.stage)
        for prompt in ring.fed():
            length = max(1, int(rng.lognormvariate(2.0, 1.0)))
            lengths[prompt.group_id] = length
            assert prompt.min_version <= ring.version
            running.append((clock + length / 8, prompt, ring.version, length))
        clock += 0.25
        for done in [r for r in running if r[0] <= clock]:
            running.remove(done)
            ring.answer(done[1], [0, 1], version=done[2], length=min(done[3], 200))
        planned = ring.plan()
        if planned is not None:
            assert not planned.manifest.dropped
            assert all(planned.manifest.step - 1 - s.trajectory.oldest_version <= 4 for g in planned.groups for s in g)
            trained += [lengths[g.group_id] for g in planned.manifest.groups]
            ring.execute(planned)
    fed = [lengths[name] for name in list(lengths)[: len(trained)]]
    assert np.mean(trained) == pytest.approx(np.mean(fed), rel=0.05)
    assert np.percentile(trained, 99) == pytest.approx(np.percentile(fed, 99), rel=0.25)


@pytest.mark.parametrize("poison", [b"\xff\xfe rubbish", b"", encode(Vote("x", 0, "r", "abstain"))])
def test_a_poison_record_is_dead_lettered_once_and_ends_the_group_that_its_key_names(log: Log, poison: bytes) -> None:
    ring = Ring(log, groups_per_step=1, max_lag=1)
    ring.planner.refill(ring.stage)
    victim, other = ring.fed()
    ring.out.send(TOPICS.trajectories, victim.group_id.encode(), poison)
    ring.out.send(TOPICS.trajectories, b"nobody", poison)
    ring.sample(other, 0, token=319)
    ring.sample(other, 1)
    ring.out.flush()
    ring.pump()
    ring.pump()
    assert sum(log.ends(TOPICS.deadletters).values()) == 2
    assert list(ring.join.groups) == [other.group_id]
    assert ring.planner.refill(ring.stage) == 1, "its credit has come back"
    ring.vote(other, 0, 1.0)
    ring.vote(other, 1, 0.0)
    ring.out.flush()
    assert [(d.group_id, d.reason) for d in ring.plan().manifest.dropped] == [(victim.group_id, "dead_letter")]
    audit = verify(log, TOPICS)
    assert (audit.trained, audit.dead_lettered, audit.outstanding, audit.problems) == (1, 1, 1, [])


def test_tokens_outside_the_vocabulary_are_dead_lettered(log: Log) -> None:
    ring = Ring(log, groups_per_step=1)
    ring.planner.refill(ring.stage)
    prompt = ring.fed()[0]
    ring.sample(prompt, 0, token=320)
    ring.out.flush()
    ring.pump()
    assert prompt.group_id not in ring.join.groups and sum(log.ends(TOPICS.deadletters).values()) == 1


def test_redelivered_samples_and_votes_are_left_aside(log: Log) -> None:
    ring = Ring(log, groups_per_step=1)
    ring.planner.refill(ring.stage)
    prompt = ring.fed()[0]
    ring.answer(prompt, [0, 1])
    ring.answer(prompt, [1, 1])
    planned = ring.plan()
    assert [j.reward for j in planned.groups[0]] == [0, 1] and ring.join.duplicates == 4
    ring.answer(prompt, [1, 1])
    ring.pump()
    assert ring.join.duplicates == 8
    audit = verify(log, TOPICS)
    assert audit.duplicate_samples == 4 and audit.problems == []


def test_a_restart_finds_every_outstanding_group_and_goes_on(log: Log) -> None:
    ring = Ring(log, groups_per_step=2, max_lag=2)
    ring.planner.refill(ring.stage)
    prompts = ring.fed()
    for prompt in prompts[:3]:
        ring.answer(prompt, [0, 1])
    assert ring.plan() is not None
    ring.sample(prompts[3], 0)
    ring.out.flush()
    before = list(ring.join.groups)
    ring.start()
    assert list(ring.join.groups) == before
    ring.pump()
    assert ring.join.groups[prompts[2].group_id].complete and len(ring.join.groups[prompts[3].group_id].samples) == 1
    ring.planner._in_training = 0
    assert ring.planner.refill(ring.stage) == 2
    assert {p.number for p in ring.fed()} == {6, 7}
    ring.start()
    assert len(ring.join.groups) == 6, "prompts that were fed behind the last manifest are outstanding too"
    audit = verify(log, TOPICS)
    assert (audit.fed, audit.trained, audit.outstanding, audit.problems) == (8, 2, 6, [])


def test_numbers_that_a_crash_kept_from_the_log_are_fed_first(log: Log) -> None:
    ring = Ring(log, groups_per_step=1, max_lag=3)
    ring.planner.refill(ring.stage)
    ring.planner.feed.missing = {"sums": [1]}
    asked = ring.planner.feed.next_questions(ring.stage.feedings, [0, 0, 0])
    assert [q.number for q in asked] == [1, 4, 5]


def test_sources_are_asked_by_their_weights_and_the_cursor_alone_says_which_is_next(log: Log) -> None:
    ring = Ring(log, groups_per_step=4, max_lag=2)
    (own,) = ring.stage.feedings
    other = Feeding(Schedule("more", SignedSums(seed=4), 0), replace(own.ask, rewards={"q": 1.0}), 3.0)
    stage = replace(ring.stage, feedings=(own, other))
    assert ring.planner.refill(stage) == 12
    fed = ring.fed()
    assert Counter(p.dataset for p in fed) == {"sums": 3, "more": 9}
    assert {p.dataset: dict(p.rewards) for p in fed} == {"sums": {"r": 1.0}, "more": {"q": 1.0}}
    ring.start()
    asked = ring.planner.feed.next_questions(stage.feedings, [0] * 4)
    assert Counter(q.feeding.schedule.name for q in asked) == {"sums": 1, "more": 3}


class Rows:
    """A source of ``size`` rows, of which ``odd`` cannot be asked."""

    def __init__(self, size: int, odd: set[int] | None = None, prefix: str = "row") -> None:
        self.size: int | None = size
        self._odd, self._prefix = odd or set(), prefix

    def row(self, number: int) -> PromptRow:
        if number in self._odd:
            raise DataError(f"rows.jsonl row {number} column 'prompt' is a list")
        return PromptRow((ChatMessage("user", f"{self._prefix} {number}"),), "1")


def stage_of(ring: Ring, source: Rows, begins: int = 0, eras: tuple[Era, ...] = ()) -> StagePlan:
    feeding = Feeding(Schedule("rows", source, 0, eras=eras, begins=begins), ring.stage.feedings[0].ask)
    return replace(ring.stage, feedings=(feeding,))


def test_a_row_that_cannot_be_asked_is_a_dead_letter_and_the_others_go_on(log: Log) -> None:
    ring = Ring(log, groups_per_step=4)
    assert ring.planner.refill(stage_of(ring, Rows(8, odd={3}))) == 8
    fed = ring.fed()
    assert len(fed) == 7 and not any(p.group_id.startswith("rows-3@") for p in fed)
    (letter,) = [decode(r.value) for r in read_all(log.reader(TOPICS.deadletters), log.ends(TOPICS.deadletters))]
    assert isinstance(letter, DeadLetter) and (letter.topic, letter.offset) == ("data.rows", 3)
    assert "column 'prompt' is a list" in letter.error
    assert not verify(log, TOPICS).problems


def test_a_row_that_the_log_cannot_hold_is_one_too(log: Log) -> None:
    ring, source = Ring(log, groups_per_step=4), Rows(8)
    whole = source.row
    half = PromptRow((ChatMessage("user", "half a pair: \ud800"),), "1")
    source.row = lambda number: half if number == 5 else whole(number)  # type: ignore[method-assign]
    assert ring.planner.refill(stage_of(ring, source)) == 8
    assert len(ring.fed()) == 7
    (letter,) = [decode(r.value) for r in read_all(log.reader(TOPICS.deadletters), log.ends(TOPICS.deadletters))]
    assert isinstance(letter, DeadLetter) and letter.offset == 5 and "surrogates not allowed" in letter.error


def test_a_row_that_was_mended_is_asked_again_when_its_dead_letter_is_replayed(log: Log) -> None:
    ring, odd = Ring(log, groups_per_step=4, max_lag=1), {3}
    stage = stage_of(ring, Rows(8, odd=odd))
    ring.planner.refill(stage)
    for prompt in ring.fed():
        ring.answer(prompt, [0, 1])
    (letter,) = read_all(log.reader(TOPICS.deadletters), log.ends(TOPICS.deadletters))
    odd.clear()  # the file is mended
    producer = log.producer()
    producer.send(TOPICS.deadletters, b"data.rows", encode(Settled(letter.offset, "replayed")))
    producer.flush()
    ring.pump()
    ring.execute(ring.planner.plan(stage))
    ring.planner.refill(stage)
    again = ring.fed()[0]
    assert again.group_id == "rows-3@0", "before any row of the next epoch"
    assert decode(letter.value).key == str(again.number).encode()  # type: ignore[union-attr]
    ring.planner.refill(stage)
    assert not any(p.group_id == again.group_id for p in ring.fed()), "once"
    assert not verify(log, TOPICS).problems


def test_a_source_of_which_no_row_can_be_asked_ends_the_run(log: Log) -> None:
    ring = Ring(log, groups_per_step=4)
    with pytest.raises(DataError, match=r"\[data.rows\] no row can be asked; the last one: rows.jsonl row"):
        ring.planner.refill(stage_of(ring, Rows(4, odd=set(range(4)))))


@pytest.mark.parametrize("after", [Rows(9), Rows(3), Rows(5, prefix="edited")], ids=["grown", "shrunk", "edited"])
def test_a_source_that_changed_between_two_starts_is_taken_up_and_no_id_means_two_things(log: Log, after: Rows) -> None:
    ring = Ring(log, groups_per_step=4)
    ring.planner.refill(stage_of(ring, Rows(5)))
    for prompt in ring.fed():
        ring.answer(prompt, [0, 1])
    ring.execute(ring.plan())
    ring.start()
    state = ring.planner.state()
    assert state.eras["rows"][0].size == 5
    stage = stage_of(ring, after, state.cursor["rows"], state.eras["rows"])
    ring.planner.refill(stage)
    ring.pump()
    while ring.planner.planned < 6:
        for prompt in ring.fed():
            ring.answer(prompt, [0, 1])
        ring.pump()
        planned = ring.planner.plan(stage)
        assert planned is not None
        ring.execute(planned)
        ring.planner.refill(stage)
    prompts = [
        m
        for r in read_all(log.reader(TOPICS.prompts), log.ends(TOPICS.prompts))
        if isinstance(m := decode(r.value), Prompt)
    ]
    prompts.sort(key=lambda p: p.number)
    contents: dict[str, set[str]] = {}
    for prompt in prompts:
        contents.setdefault(prompt.group_id, set()).add(prompt.content)
    assert len(prompts) == len(contents) and all(len(c) == 1 for c in contents.values())
    assert {p.group_id.partition("@")[0] for p in prompts[8:]} <= {f"rows-{n}" for n in range(after.size or 0)}
    assert not verify(log, TOPICS).problems


def test_a_collection_on_a_source_that_is_trained_leaves_its_eras_as_they_are(log: Log) -> None:
    ring, rows = Ring(log, groups_per_step=4), Rows(9)
    ring.planner.refill(stage_of(ring, rows, begins=5, eras=(Era(0, 5, 0, "before it grew"),)))
    eras = ring.planner.state().eras["rows"]
    in_order = Schedule("rows", rows, 0, shuffle=False)
    ring.planner.ask_collection(Feeding(in_order, Ask(2, {"r": 1.0}, Sampling(), "collect", "kept")), 3, 0)
    assert len(eras) == 2 and ring.planner.state().eras["rows"] == eras


def with_gone(ring: Ring) -> StagePlan:
    """The ring's stage, whose mix has a rewarder that is to leave."""
    (own,) = ring.stage.feedings
    return replace(ring.stage, feedings=(replace(own, ask=replace(own.ask, rewards={"r": 1.0, "gone": 1.0})),))


def test_groups_no_longer_wait_for_a_rewarder_that_left_the_run_file(log: Log) -> None:
    ring = Ring(log, groups_per_step=1, max_lag=0)
    ring.planner.refill(with_gone(ring))
    (prompt,) = ring.fed()
    ring.answer(prompt, [0, 1])
    assert ring.plan() is None
    ring.planner.release(frozenset({"gone"}))
    planned = ring.plan()
    assert [j.reward for j in planned.groups[0]] == [0, 1]
    again = ManifestReader(log, TOPICS).groups(planned.manifest)
    assert [j.reward for j in again[0]] == [0, 1], "and a redo sees the same rewards"
    assert not verify(log, TOPICS).problems


def test_a_rewarder_that_left_counts_for_all_samples_of_a_group_or_for_none(log: Log) -> None:
    ring = Ring(log, groups_per_step=2, max_lag=0)
    stage = with_gone(ring)
    ring.planner.refill(stage)
    half, whole = ring.fed()
    ring.answer(half, [1, 1])
    ring.vote(half, 0, 1.0, rewarder="gone")
    ring.answer(whole, [1, 1])
    for index, value in enumerate([1.0, 0.5]):
        ring.vote(whole, index, value, rewarder="gone")
    ring.out.flush()
    ring.pump()
    ring.planner.release(frozenset({"gone"}))
    first, second = ring.join.groups.values()
    assert [j.reward for j in first.judged()] == [1.0, 1.0], "two answers that are equally good"
    assert [j.reward for j in second.judged()] == [2.0, 1.5]


def test_a_vote_that_comes_once_a_group_is_judged_changes_no_reference(log: Log) -> None:
    ring = Ring(log, groups_per_step=2, max_lag=0)
    stage = with_gone(ring)
    ring.planner.refill(stage)
    early, late = ring.fed()
    ring.answer(early, [0, 1])
    ring.pump()
    ring.planner.release(frozenset({"gone"}))
    assert ring.planner.plan(stage) is None, "the other group is missing"
    for index in range(2):
        ring.vote(early, index, 5.0, rewarder="gone")
    ring.answer(late, [0, 1])
    planned = ring.plan()
    assert [j.reward for j in planned.groups[0]] == [0, 1]
    assert ManifestReader(log, TOPICS).groups(planned.manifest) == planned.groups
    assert not verify(log, TOPICS).problems


def test_an_evaluation_counts_its_answers_and_ends_its_groups(log: Log) -> None:
    ring = Ring(log)
    schedule = Schedule("heldout", SignedSums(seed=9), 0, shuffle=False)
    feeding = Feeding(schedule, Ask(2, {"r": 1.0}, Sampling(), "eval", "before"))
    assert ring.planner.ask_collection(feeding, 3, 0) == 3
    assert ring.planner.ask_collection(feeding, 3, 0) == 0, "what was asked is not asked again"
    asked = Benchmark(k=2, rewarder="r")
    ring.collections.expect(
        Collection("before", 0, 0, 60.0, time.time()),
        lambda c, groups, lost: score(asked, c.name, c.step, c.stage, groups, lost, time.time()),
    )
    for prompt, rewards in zip(ring.fed(), ([1, 1], [1, 0], [0, 0]), strict=True):
        ring.answer(prompt, rewards)
    ring.pump()
    (result,) = ring.collections.settle(time.time())
    assert result.pass_at_1 == pytest.approx(0.5) and result.questions == 3 and not ring.join.groups
    assert verify(log, TOPICS).evaluated == 3


@pytest.mark.parametrize("mix", [{"r": 1.0, "gone": 1.0}, {"gone": 1.0}])
def test_an_evaluation_no_longer_waits_for_a_rewarder_that_left_the_run_file(log: Log, mix: dict[str, float]) -> None:
    ring = Ring(log)
    schedule = Schedule("heldout", SignedSums(seed=9), 0, shuffle=False)
    ring.planner.ask_collection(Feeding(schedule, Ask(2, mix, Sampling(), "eval", "held")), 1, 0)
    (prompt,) = ring.fed()
    asked = Benchmark(k=2, rewarder="r")

    def finish(c: Collection, groups: Sequence[Group], lost: Sequence[Dropped]) -> Evaluation:
        samples = [Judged(sample, 1.0) for group in groups for sample, _ in group.samples.values()]
        assert not lost and len(groups[0].ref(samples).samples) == 2
        return score(asked, c.name, c.step, c.stage, groups, lost, time.time())

    ring.collections.expect(Collection("held", 0, 0, 60.0, time.time()), finish)
    for index, value in enumerate([1.0, 0.0]):
        ring.sample(prompt, index)
        if "r" in mix:
            ring.vote(prompt, index, value)
    ring.out.flush()
    ring.pump()
    assert not ring.collections.settle(time.time())
    ring.planner.release(frozenset({"gone"}))
    (ending,) = ring.collections.settle(time.time())
    assert (ending.questions, ending.pass_at_1) == ((1, 0.5) if "r" in mix else (0, 0.0))
    assert not ring.join.groups and not verify(log, TOPICS).problems


def test_the_end_of_a_stage_ends_collections_that_nobody_wants_any_longer(log: Log) -> None:
    ring = Ring(log)
    schedule = Schedule("heldout", SignedSums(seed=9), 0, shuffle=False)
    for name in ("given up", "under way", "requested"):
        ring.planner.ask_collection(Feeding(schedule, Ask(2, {"r": 1.0}, Sampling(), "eval", name)), 2, 0)
    ring.start()
    planning = Planning(ring.planner, ring.collections, lambda ending: None)
    ring.collections.expect(
        Collection("under way", 0, 0, 60.0, time.time()),
        lambda c, groups, lost: score(Benchmark(k=2, rewarder="r"), c.name, c.step, c.stage, groups, lost, time.time()),
    )
    planned = planning.close_stage(0, ["requested"])
    assert {d.group_id.rpartition("@")[2]: d.reason for d in planned.manifest.dropped} == {"given up": "stage_end"}
    assert Counter(g.prompt.collection for g in ring.join.groups.values()) == {"under way": 2, "requested": 2}
    ring.start()
    assert len(ring.join.groups) == 4
    audit = verify(log, TOPICS)
    assert (audit.dropped, audit.outstanding, audit.problems) == (2, 4, [])


def test_statistics_of_evaluations() -> None:
    ones = [Answers((True,), ("1",))] * 9 + [Answers((False,), ("2",))]
    value, (low, high) = pass_at_1(ones)
    assert value == 0.9 and (low, high) == (0.7, 1.0), "of ten, resampled"
    assert pass_at_1(ones[:9]) == (1.0, wilson(1.0, 9)), "no resample differs"
    assert pass_at_1(ones[9:]) == (0.0, wilson(0.0, 1)) and pass_at_1([]) == (0.0, (0.0, 1.0))
    tied = Answers((False, True, True), ("2", "7", "7"))
    assert cons_at_k([tied, Answers((False, False), ("2", "3"))])[0] == 0.5
    assert pass_at_k([tied], 1)[0] == pytest.approx(2 / 3) and pass_at_k([tied, ones[-1]], 3)[0] == 0.5
    assert pass_at_k([], 1) == (0.0, (0.0, 1.0)) == cons_at_k([])


def test_deadlines_begin_anew_when_the_log_was_away(log: Log) -> None:
    """A round that was held up for longer than the deadline, as by a log that is away, drops nothing."""
    ring = Ring(log, groups_per_step=1, max_lag=0, deadline=0.5)
    thread = PlanningThread(ring.planner, ring.collections, lambda result: None)
    thread._last_round = time.time() - 100
    thread._stage = ring.stage
    thread.round()
    (slow,) = ring.fed()
    ring.join.groups[slow.group_id].fed -= 50
    ring.planner._started -= 50
    thread._last_round = time.time() - 50  # what a round finds that has waited so long in the middle
    thread._notice_stall()
    thread.round()
    assert not ring.planner._dropped and slow.group_id in ring.join.groups
    ring.planner.expire(ring.table, time.time() + 1)
    assert [d.reason for d in ring.planner._dropped] == ["incomplete"], "and then they hold"


def test_samples_that_are_lost_are_asked_for_again_once_the_actors_are_done(log: Log) -> None:
    ring = Ring(log, groups_per_step=1, max_lag=0)
    ring.planner.refill(ring.stage)
    (prompt,) = ring.fed()
    ring.sample(prompt, 0)
    ring.out.flush()
    ring.pump()
    now = time.time()
    assert ring.planner.ask_again(now) == [] and ring.planner.ask_again(now + 1000) == [], "an actor may be at it"
    actor = log.consumer([TOPICS.prompts], TOPICS.group("actors"), "a")
    while not (taken := actor.poll(16, 1.0)):
        pass
    actor.commit({(r.topic, r.partition): r.offset + 1 for r in taken})
    assert ring.planner.ask_again(now) == [] and ring.planner.ask_again(now + 5) == [], "it may be on its way"
    assert ring.planner.ask_again(now + 25) == [prompt.group_id]
    assert ring.planner.ask_again(now + 30) == [], "not at once again"
    (again,) = ring.fed()
    assert again == prompt
    ring.answer(prompt, [0, 1])
    ring.pump()
    ring.vote(prompt, 0, 0.0)
    planned = ring.plan()
    assert [j.reward for j in planned.groups[0]] == [0, 1]
    assert verify(log, TOPICS).problems == []
    ring.start()
    assert not ring.join.groups, "a restart knows that the group has ended"
    actor.close()


def test_a_whole_epoch_of_dead_letters_ends_the_run_with_the_reason(log: Log) -> None:
    ring = Ring(log, groups_per_step=1, max_lag=1)
    stage = stage_of(ring, Rows(5))
    with pytest.raises(RunFault, match=r"the last 5 prompts all became dead letters, .* 300 tokens"):
        for _ in range(6):
            ring.planner.refill(stage)
            for prompt in ring.fed():
                letter = DeadLetter(
                    TOPICS.prompts, 0, 0, b"", b"", "the prompt has 300 tokens", "actor", prompt.group_id
                )
                ring.out.send(TOPICS.deadletters, b"k", encode(letter))
            ring.out.flush()
            ring.pump()


def test_who_abstains_neither_rewards_nor_punishes_and_old_manifests_keep_their_rule() -> None:
    mix = {"accuracy": 1.0, "brevity": 0.25}
    right, silent = Vote("g", 0, "accuracy", "value", 1.0), Vote("g", 0, "brevity", "abstain")
    wrong = Vote("g", 0, "accuracy", "value", 0.0)
    brief = Vote("g", 0, "brevity", "value", 1.0)
    assert reward_of(mix, {"accuracy": right, "brevity": silent}) == reward_of(
        mix, {"accuracy": right, "brevity": brief}
    )
    assert reward_of(mix, {"accuracy": wrong, "brevity": silent}) == 0.0
    assert reward_of(mix, {"accuracy": right, "brevity": silent}, rule=1) == 1.0
    gone = Vote("g", 0, "accuracy", "abstain")
    assert reward_of(mix, {"accuracy": gone, "brevity": silent}) is None
    watched = {"accuracy": 1.0, "brevity": 0.0}
    assert reward_of(watched, {"accuracy": gone, "brevity": brief}) is None, "only one without a weight has spoken"
    assert reward_of(watched, {"accuracy": gone, "brevity": brief}, rule=2) == 0.0
    assert reward_of(watched, {"accuracy": right, "brevity": silent}) == 1.0


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 2e30])
def test_a_reward_that_nothing_can_be_compared_with_is_none(value: float) -> None:
    vote = Vote("g", 0, "accuracy", "value", value)
    assert reward_of({"accuracy": 10.0}, {"accuracy": vote}) is None
    assert reward_of({"accuracy": 10.0}, {"accuracy": vote}, rule=2) == 10 * value


def test_groups_whose_prompts_have_expired_are_dropped_and_the_run_goes_on(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    ring = Ring(log, groups_per_step=1, max_lag=2)
    ring.planner.refill(ring.stage)
    prompts = ring.fed()
    ring.answer(prompts[0], [0, 1])
    ring.execute(ring.plan())
    for topic in (TOPICS.prompts, TOPICS.trajectories, TOPICS.rewards):
        log.trim(topic, log.ends(topic))  # the learner was away for longer than the log keeps records
    ring.start()
    assert not ring.join.groups and "2 prompts that were outstanding" in caplog.text
    assert ring.planner.refill(ring.stage) == 3, "their credits are back"
    for prompt in ring.fed():
        ring.answer(prompt, [0, 1])
    planned = ring.plan()
    assert sorted(d.group_id for d in planned.manifest.dropped) == sorted(p.group_id for p in prompts[1:])
    assert {d.reason for d in planned.manifest.dropped} == {"expired"}
    ring.start()
    assert not ring.planner._dropped, "they end once"
    audit = verify(log, TOPICS)
    assert (audit.dropped, audit.dropped_by_reason, audit.outstanding) == (2, {"expired": 2}, 2)
    assert all("has expired" in problem for problem in audit.problems), "these topics were to keep everything"


@pytest.mark.long
def test_a_learner_that_trains_nothing_keeps_nothing(log: Log) -> None:
    """Every group is dropped, and no manifest comes: what is held is bounded by the credits."""
    ring = Ring(log, groups_per_step=2, max_lag=1)
    rewards = []
    for _ in range(40):
        ring.planner.refill(ring.stage)
        for prompt in ring.fed():
            for index in range(2):
                ring.sample(prompt, index)
                ring.vote(prompt, index, None, "error")
            rewards.append(0.5)
            ring.out.flush()
        assert ring.plan() is None
    gc.collect()
    assert sum(isinstance(it, Group) for it in gc.get_objects()) <= ring.table.credits + 4
    assert sum(isinstance(it, Trajectory) for it in gc.get_objects()) <= 2 * ring.table.credits + 8
    ring.planner.refill(ring.stage)
    for prompt in ring.fed():
        ring.answer(prompt, [0, 1])
    metrics = ring.plan().manifest.metrics
    assert metrics["dropped/unjudged"] == len(rewards) and metrics["groups_seen"] == len(rewards) + 2
    assert metrics["reward_mean"] == 0.5, "of the samples that have one"


def test_a_restart_reads_the_dead_letters_that_still_say_something(log: Log) -> None:
    ring = Ring(log, groups_per_step=1, max_lag=2)
    for _ in range(5):
        ring.out.send(TOPICS.trajectories, b"nobody", b"\xc1 rubbish")
    ring.out.flush()
    ring.pump()
    ring.planner.refill(ring.stage)
    first, *others = ring.fed()
    ring.answer(first, [0, 1])
    ring.pump()
    assert ring.planner.state().deadletters == {0: 5}, "all are of records that nobody reads again"
    ring.out.send(TOPICS.trajectories, others[0].group_id.encode(), b"\xc1 rubbish")
    ring.out.flush()
    for prompt in others[1:]:
        ring.sample(prompt, 0)  # it keeps the offsets where they are
    ring.out.flush()
    ring.execute(ring.plan())
    ring.start()
    ring.pump()
    ring.pump()
    assert log.ends(TOPICS.deadletters) == {0: 6}, "nothing is buried twice"
    assert others[0].group_id not in ring.join.groups


def test_a_log_that_does_not_go_up_to_the_checkpoint_is_refused(log: Log) -> None:
    ring = Ring(log, groups_per_step=1)
    ring.planner.refill(ring.stage)
    for prompt in ring.fed():
        ring.answer(prompt, [0, 1])
    end = ring.plan().offset
    assert read_tail(log, TOPICS, end).newest is not None
    for offset in (end + 1, end + 9):
        with pytest.raises(LogError, match="no manifest before offset"):
            read_tail(log, TOPICS, offset)
