"""The audit finds every kind of damage, names it, and finds none in a sound log."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from handmade import Handmade
from ringtools import answer_of

from broker.messages import Artefact, Dropped, GroupRef, Position, StepResult, VoteRef
from headrace.reading.audit import SHOWN, Audit
from headrace.reading.fates import Fates
from headrace.reading.prompts import Prompts
from headrace.reading.verify import verify, verify_on


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Handmade]:
    hand = Handmade(tmp_path / "log").whole()
    yield hand
    hand.close()


def test_a_sound_log_is_counted(made: Handmade) -> None:
    made.sample("p-0@0", 0)  # a redelivery: the first one holds
    audit = verify(made.log, made.topics)
    assert audit.problems == [] and audit.problem_count == 0
    assert (audit.fed, audit.trained, audit.dropped, audit.dead_lettered) == (8, 4, 1, 1)
    assert (audit.evaluated, audit.outstanding, audit.steps) == (1, 1, 2)
    assert (audit.samples_trained, audit.duplicate_samples, audit.expired) == (8, 1, 0)
    assert audit.dropped_by_reason == {"stale": 1, "dead_letter": 1}


def test_an_empty_log_is_sound(tmp_path: Path) -> None:
    hand = Handmade(tmp_path / "log")
    assert verify(hand.log, hand.topics).problems == []
    hand.close()


def with_sample(group: GroupRef, **changes: object) -> GroupRef:
    """``group`` with its first sample changed."""
    first, *rest = group.samples
    return group._replace(samples=(first._replace(**changes), *rest))


def fed_twice(made: Handmade) -> str:
    made.prompt("p-6@0", answer="5")
    return "group p-6@0 was fed twice, with different content"


def two_fates(made: Handmade) -> str:
    made.manifest(4, made.group("p-7@0"), dropped=(Dropped("p-0@0", "stale", 0),), state=made.state("p-6@0"))
    return r"group p-0@0 is trained and, by manifest step 4, dropped again"


def evaluated_and_trained(made: Handmade) -> str:
    made.evaluation("more", 0.5, "p-4@0")
    return r"group p-4@0 is trained and, by evaluation more, evaluated again"


def lost_group(made: Handmade) -> str:
    made.manifest(4, made.group("p-7@0"), state=made.state())
    return "group p-6@0 is lost"


def never_fed(made: Handmade) -> str:
    made.evaluation("more", 0.5, "ghost-0@0")
    return "group ghost-0@0 is evaluated, but was never fed"


def trained_twice(made: Handmade) -> str:
    made.manifest(4, made.refs["p-0@0"], state=made.state("p-6@0"))
    return r"sample p-0@0#1 was trained 2 times"


def sample_twice_in_a_group(made: Handmade) -> str:
    group = made.group("p-7@0")
    made.manifest(4, group._replace(samples=(*group.samples, group.samples[0])), state=made.state("p-6@0"))
    return r"sample p-7@0#0 was trained 2 times"


def step_is_missing(made: Handmade) -> str:
    made.manifest(5, made.group("p-7@0"), state=made.state("p-6@0"))
    return "manifest step 5 stands where version 4 is due"


def close_of_another_version(made: Handmade) -> str:
    made.manifest(2, kind="close", state=made.state("p-6@0"))
    return "manifest close 2 stands where version 3 is due"


def step_with_other_content(made: Handmade) -> str:
    made.manifest(3, made.group("p-7@0"), state=made.state("p-6@0"))
    return "manifest step 3 is written twice, with different content"


def step_written_again(made: Handmade) -> str:
    again = made.manifest(4, made.group("p-7@0"), state=made.state("p-6@0"), created=1.0)
    made.write(made.topics.steps, replace(again, created=2.0))
    return "manifest step 4 is written twice"


def rubbish_in_the_steps(made: Handmade) -> str:
    made.write(made.topics.steps, b"\xc1 rubbish")
    return "record 8 of the steps cannot be read"


def sample_is_gone(made: Handmade) -> str:
    group = with_sample(made.group("p-7@0"), position=Position(0, 999))
    made.manifest(4, group, state=made.state("p-6@0"))
    return r"group p-7@0 of step 4: small.trajectories\[0\] has no record at offset 999"


def vote_is_gone(made: Handmade) -> str:
    group = made.group("p-7@0")
    votes = (VoteRef("accuracy", Position(1, 999)), group.samples[0].votes[1])
    made.manifest(4, with_sample(group, votes=votes), state=made.state("p-6@0"))
    return r"group p-7@0 of step 4: small.rewards\[1\] has no record at offset 999"


def another_sample(made: Handmade) -> str:
    group, other = made.group("p-7@0"), made.refs["p-0@0"].samples[0].position
    made.manifest(4, with_sample(group, position=other), state=made.state("p-6@0"))
    return "sample p-7@0#0 of step 4: another record lies at"


def another_vote(made: Handmade) -> str:
    group = made.group("p-7@0")
    one, two = group.samples[0].votes
    swapped = (VoteRef(one.rewarder, two.position), VoteRef(two.rewarder, one.position))
    made.manifest(4, with_sample(group, votes=swapped), state=made.state("p-6@0"))
    return "sample p-7@0#0 of step 4: accuracy's vote does not lie at"


def another_prompt(made: Handmade) -> str:
    group = made.group("p-7@0")._replace(prompt=made.prompts["p-6@0"])
    made.manifest(4, group, state=made.state("p-6@0"))
    return "group p-7@0 of step 4: its prompt does not lie at"


def from_the_future(made: Handmade) -> str:
    made.manifest(4, made.group("p-7@0", version=4), state=made.state("p-6@0"))
    return "it was sampled by version 4, which was not made yet"


def unjudged(made: Handmade, outcome: str, names: tuple[str, ...] = ("accuracy", "format")) -> None:
    group = made.group("p-7@0")
    votes = tuple(VoteRef(name, made.vote("p-7@0", 0, name, outcome)) for name in names)
    made.manifest(4, with_sample(group, votes=votes), state=made.state("p-6@0"))


def trained_on_an_error(made: Handmade) -> str:
    unjudged(made, "error")
    return "it was trained though accuracy could not judge it"


def trained_on_abstentions(made: Handmade) -> str:
    unjudged(made, "abstain")
    return "it was trained though every rewarder abstained"


def trained_without_votes(made: Handmade) -> str:
    unjudged(made, "abstain", names=())
    return "it was trained without a vote"


def expired_unasked(made: Handmade) -> str:
    partition, offset = made.refs["p-5@0"].samples[0].position
    made.log.trim(made.topics.trajectories, {partition: offset + 1})
    return r"small.trajectories.* has expired"


DAMAGE: list[Callable[[Handmade], str]] = [
    fed_twice, two_fates, evaluated_and_trained, lost_group, never_fed, trained_twice, sample_twice_in_a_group,
    step_is_missing, close_of_another_version, step_with_other_content, step_written_again, rubbish_in_the_steps,
    sample_is_gone, vote_is_gone, another_sample, another_vote, another_prompt, from_the_future, trained_on_an_error,
    trained_on_abstentions, trained_without_votes, expired_unasked,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__)
def test_damage_is_found_and_named(made: Handmade, damage: Callable[[Handmade], str]) -> None:
    wanted = damage(made)
    problems = verify(made.log, made.topics).problems
    assert any(re.search(wanted, problem) for problem in problems), problems


def test_the_same_prompt_twice_is_one_prompt(made: Handmade) -> None:
    made.prompt("p-6@0", version=3, created=9.0)
    audit = verify(made.log, made.topics)
    assert audit.problems == [] and audit.fed == 8


def test_what_retention_was_asked_to_remove_is_no_problem(tmp_path: Path) -> None:
    hand = Handmade(tmp_path / "log", retention=3600.0).whole()
    for topic in (hand.topics.prompts, hand.topics.trajectories, hand.topics.rewards):
        hand.log.trim(topic, hand.log.ends(topic))
    audit = verify(hand.log, hand.topics)
    assert audit.problems == [] and audit.expired == 4 + 8 + 16
    assert (audit.trained, audit.dropped, audit.dead_lettered, audit.evaluated) == (4, 1, 1, 1)
    hand.close()


def test_bytes_that_were_damaged_on_disk_are_found(made: Handmade, tmp_path: Path) -> None:
    made.close()
    with sqlite3.connect(tmp_path / "log" / "small.trajectories.sqlite") as db:
        db.execute("UPDATE records SET value = x'00ff' WHERE id = (SELECT MIN(id) FROM records)")
    db.close()
    again = Handmade(tmp_path / "log")
    audit = verify(again.log, again.topics)
    assert audit.problem_count == 1 and "another record lies at" in audit.problems[0]
    again.close()


def test_all_problems_are_counted_though_not_all_are_told(made: Handmade) -> None:
    for number in range(SHOWN + 10):
        made.evaluation("more", 0.5, f"ghost-{number}@0")
    audit = verify(made.log, made.topics)
    assert len(audit.problems) == SHOWN and audit.problem_count == SHOWN + 10


def test_the_command_says_so_and_its_exit_status_too(made: Handmade, tmp_path: Path) -> None:
    made.run(tmp_path)
    sound = answer_of("verify", str(tmp_path))
    assert sound.returncode == 0 and sound.stdout.endswith("sound\n")
    never_fed(made)
    told, data = answer_of("verify", str(tmp_path)), answer_of("verify", str(tmp_path), "--json")
    assert told.returncode == data.returncode == 1
    assert "PROBLEM: group ghost-0@0 is evaluated" in told.stdout and "NOT SOUND: 1 problems" in told.stdout
    assert json.loads(data.stdout)["ok"] is False and json.loads(data.stdout)["fed"] == 9


# -- what ends groups beside steps and evaluations ---------------------------------------------------------------------


def test_a_step_that_was_set_aside_has_trained_nothing(made: Handmade) -> None:
    made.manifest(4, made.group("p-7@0"), made.group("p-8@0"), state=made.state("p-6@0"))
    made.manifest(5, made.group("p-9@0"), state=made.state("p-6@0"))
    for _ in range(2):  # once more after a restart
        made.manifest(4, kind="set_aside", why="a record cannot be read")
    made.manifest(6, made.group("p-10@0"), state=made.state("p-6@0"))
    audit = verify(made.log, made.topics)
    assert audit.problems == [] and (audit.trained, audit.dropped, audit.steps) == (6, 3, 4)
    assert audit.dropped_by_reason["set_aside"] == 2 and audit.samples_trained == 2 * audit.trained


def test_a_step_that_is_tried_again_is_trained_after_all_and_nothing_else_may_say_so(made: Handmade) -> None:
    groups = made.group("p-7@0"), made.group("p-8@0")
    made.manifest(4, *groups, state=made.state("p-6@0"))
    made.manifest(4, kind="set_aside", why="-")
    made.manifest(5, *groups, state=made.state("p-6@0"), again=4)
    audit = verify(made.log, made.topics)
    assert audit.problems == [] and (audit.trained, audit.dropped, audit.samples_trained) == (6, 1, 12)
    assert "set_aside" not in audit.dropped_by_reason
    made.manifest(6, *groups, state=made.state("p-6@0"), again=4)
    made.manifest(7, groups[0], state=made.state("p-6@0"), again=5)
    told = verify(made.log, made.topics).problems
    assert told == [
        "manifest step 6 trains the groups of step 4 again, which was not set aside",
        "manifest step 7 trains the groups of step 5 again, which was not set aside",
        "manifest step 7 says that it is step 5 again, and has other groups",
    ]


def test_a_step_that_nobody_ordered_cannot_be_set_aside(made: Handmade) -> None:
    made.manifest(9, kind="set_aside", why="-")
    assert verify(made.log, made.topics).problems == ["step 9 is set aside, but no manifest orders it"]


def collect(made: Handmade, *kept: GroupRef, **changes: Any) -> None:
    gone = (Dropped("p-6@0", "wrong", 3),)
    made.write(made.topics.steps, Artefact("kept", 1, 3, "documents", "a.jsonl", kept=kept, dropped=gone, **changes))


def test_groups_end_in_an_artefact(made: Handmade) -> None:
    group = made.group("c-0@kept", 3)
    collect(made, group._replace(samples=group.samples[:1]))
    audit = verify(made.log, made.topics)
    assert audit.problems == [] and (audit.collected, audit.dropped, audit.outstanding) == (1, 2, 0)


def test_what_an_artefact_kept_is_looked_up(made: Handmade) -> None:
    collect(made, with_sample(made.group("c-0@kept"), position=Position(0, 999)))
    assert any("group c-0@kept of artefact kept" in problem for problem in verify(made.log, made.topics).problems)


# -- supervised steps --------------------------------------------------------------------------------------------------


def supervised(made: Handmade, *steps: int) -> None:
    for step in steps:
        made.supervised(step, 4 * (step - 1), stage=5)


def test_supervised_steps_are_counted_once_and_a_redo_reads_the_same(made: Handmade) -> None:
    supervised(made, 1, 2, 3, 2, 3, 4)
    audit = verify(made.log, made.topics)
    assert (audit.supervised_steps, audit.documents, audit.reread, audit.problems) == (4, 16, 0, [])
    made.supervised(4, 12, stage=5, sha256="other")
    assert verify(made.log, made.topics).reread == 1, "the data was changed before the step was made again"


def test_a_supervised_step_without_a_record_is_found(made: Handmade) -> None:
    supervised(made, 1, 2, 5)
    wanted = "stage 5: no record says what the steps between 2 and 5 have read, documents 8 to 15"
    assert verify(made.log, made.topics).problems == [wanted]


def test_a_log_of_old_has_a_record_for_ten_supervised_steps(made: Handmade) -> None:
    for step in (10, 20, 24):
        first = 0 if step == 10 else 40 if step == 20 else 80
        made.write(made.topics.steps, StepResult(0, 5, step, documents=(first, 4 * step - first, "aa")))
    audit = verify(made.log, made.topics)
    assert (audit.supervised_steps, audit.documents, audit.problems) == (24, 96, [])


def test_an_audit_behind_a_seal_goes_on_with_a_supervised_stage_where_it_was(made: Handmade) -> None:
    supervised(made, 1, 2, 3)
    verify_on(made.log, made.topics)
    supervised(made, 3, 4)
    second = verify_on(made.log, made.topics)
    assert (second.supervised_steps, second.documents, second.problems) == (4, 16, [])
    supervised(made, 7)
    assert verify_on(made.log, made.topics).problem_count == 1


# -- seals -------------------------------------------------------------------------------------------------------------


def counts(audit: Audit) -> dict[str, Any]:
    return {name: value for name, value in asdict(audit).items() if name != "sealed"}


def test_an_audit_that_begins_at_a_seal_counts_as_one_of_the_whole(made: Handmade) -> None:
    first = verify_on(made.log, made.topics)
    assert first.sealed == 0 and first.problems == []
    made.manifest(4, made.group("p-7@0"), dropped=(Dropped("p-6@0", "stale", 0),), state=made.state())
    made.result(4, {})
    second = verify_on(made.log, made.topics)
    assert second.sealed == 8 and counts(second) == counts(verify(made.log, made.topics))
    assert (second.trained, second.dropped, second.outstanding, second.looked_into) == (5, 2, 0, 3)
    third = verify_on(made.log, made.topics)
    assert third.sealed == 11 and counts(third) == counts(second)


def test_it_reads_nothing_in_front_of_the_seal(made: Handmade) -> None:
    verify_on(made.log, made.topics)
    for topic in (made.topics.trajectories, made.topics.rewards):
        made.log.trim(topic, made.log.ends(topic))
    made.manifest(4, made.group("p-7@0"), state=made.state("p-6@0"))
    assert verify_on(made.log, made.topics).problems == []
    assert verify(made.log, made.topics).problem_count > 0, "nobody had asked for the records to be removed"


SINCE: list[Callable[[Handmade], str]] = [
    two_fates, evaluated_and_trained, lost_group, never_fed, trained_twice, sample_twice_in_a_group, step_is_missing,
    close_of_another_version, step_with_other_content, step_written_again, sample_is_gone, another_vote, trained_on_an_error,
]  # fmt: skip


@pytest.mark.parametrize("damage", SINCE, ids=lambda d: d.__name__)
def test_damage_behind_a_seal_is_found_and_nothing_unsound_is_sealed(
    made: Handmade, damage: Callable[[Handmade], str]
) -> None:
    verify_on(made.log, made.topics)
    wanted = damage(made)
    end = made.log.ends(made.topics.steps)
    problems = verify_on(made.log, made.topics).problems
    assert any(re.search(wanted, problem) for problem in problems), problems
    assert made.log.ends(made.topics.steps) == end


def test_a_step_that_is_set_aside_behind_the_seal_was_not_trained(made: Handmade) -> None:
    made.manifest(4, made.group("p-7@0"), state=made.state("p-6@0"))
    verify_on(made.log, made.topics)
    made.manifest(4, kind="set_aside", why="-")
    audit = verify_on(made.log, made.topics)
    assert audit.problems == [] and (audit.trained, audit.dropped, audit.samples_trained) == (4, 2, 8)


def test_the_command_seals(made: Handmade, tmp_path: Path) -> None:
    made.run(tmp_path)
    assert answer_of("verify", str(tmp_path), "--seal").returncode == 0
    again = answer_of("verify", str(tmp_path), "--seal")
    assert again.returncode == 0 and "begun at record 8 of the steps" in again.stdout


# -- a part of it ------------------------------------------------------------------------------------------------------


def test_an_audit_of_a_part_follows_every_group_and_looks_into_some_manifests(made: Handmade) -> None:
    for step in range(4, 40):
        made.manifest(step, made.group(f"p-1{step}@0", step - 1), state=made.state("p-6@0"))
    part, whole = verify(made.log, made.topics, most=4), verify(made.log, made.topics)
    assert part.problems == [] and (part.looked_into, whole.looked_into) == (3, 38)
    assert (part.trained, part.steps, part.outstanding) == (whole.trained, whole.steps, whole.outstanding)


def test_it_holds_only_what_has_no_end_yet(made: Handmade, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    take = Fates.take

    def counted(fates: Fates, *arguments: Any) -> None:
        take(fates, *arguments)
        held.append(len(fates.open))

    for step in range(4, 120):
        made.manifest(step, *(made.group(f"p-{step}-{n}@0", step - 1) for n in range(2)), state=made.state("p-6@0"))
    monkeypatch.setattr(Fates, "take", counted)
    monkeypatch.setattr("headrace.reading.records.BATCH", 8)
    assert verify(made.log, made.topics).problems == []
    assert max(held) < 40


def test_prompts_come_by_time_however_partitions_are_read() -> None:
    """A partition whose next prompt was fed much later hides none of the others."""
    found = [(Position(p, n), 100.0 * n + p, f"{p}/{n}") for p in range(3) for n in range(4)]
    prompts = Prompts(iter(found), {}, {0: 4, 1: 4, 2: 4})  # type: ignore[arg-type]
    given = [prompts.next(50.0) for _ in range(3)]
    assert [g and g[2] for g in given] == ["0/0", "1/0", "2/0"] and prompts.next(50.0) is None
    rest = [prompts.next(float("inf")) for _ in range(10)]
    assert [g and g[2] for g in rest[:3]] == ["0/1", "1/1", "2/1"] and rest[-1] is None


def test_a_clock_that_was_set_back_changes_no_order_within_a_partition() -> None:
    found = [(Position(0, n), at, n) for n, at in enumerate((10.0, 5.0, 20.0))]
    prompts = Prompts(iter(found), {}, {0: 3})  # type: ignore[arg-type]
    assert [prompts.next(12.0)[2] for _ in range(2)] == [0, 1] and prompts.next(12.0) is None  # type: ignore[index]
