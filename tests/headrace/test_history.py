"""The history of a run, folded once: redos, steps that were set aside, parts of it, and what a follower holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from handmade import Handmade

from broker.log import Record
from broker.messages import Artefact, Evaluation, Manifest, StepResult, encode
from headrace.reading.heads import HEAD_BYTES, head_of
from headrace.reading.history import History, find_step
from headrace.reading.records import records
from headrace.reading.trace import trace


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Handmade]:
    hand = Handmade(tmp_path / "log").whole()
    yield hand
    hand.close()


def test_after_a_redo_the_last_result_holds(made: Handmade) -> None:
    history = History.of(made.log, made.topics)
    assert [r.step for r in history.results(reinforced=True)] == [2, 3]
    assert history.results(reinforced=True)[1].metrics["tokens_trained"] == 12.0
    head = history.steps[-1]
    done = history.executed(head)
    assert done is not None and done.result.metrics["staleness_max"] == 1.0
    assert [e.name for e in history.evaluations()] == ["before", "after"] and history.reinforced == {1}


def test_supervised_steps_are_told_from_reinforced_ones(made: Handmade) -> None:
    made.write(made.topics.steps, StepResult(0, 0, 7, {"loss": 1.0}))
    history = History.of(made.log, made.topics)
    assert [r.stage_step for r in history.results(reinforced=False)] == [7]


def test_a_step_that_was_set_aside_is_none_of_the_steps(made: Handmade) -> None:
    made.manifest(4, made.group("p-7@0"), state=made.state("p-6@0"))
    last = made.manifest(5, made.group("p-8@0"), state=made.state("p-6@0"))
    made.manifest(4, kind="set_aside", why="a record cannot be read")
    history = History.of(made.log, made.topics)
    assert [head.step for head in history.steps] == [2, 3, 5] and history.aside == {4: "a record cannot be read"}
    assert history.newest_manifest() == last, "it is the one that tells what is under way"
    assert find_step(made.log, made.topics, 5) <= history.steps[-1].offset
    lineage = trace(made.log, made.topics, 4)
    assert lineage["set_aside"] == "a record cannot be read" and len(lineage["groups"]) == 1


def long(hand: Handmade, steps: int) -> None:
    """Steps behind those of the handmade log, each executed; every tenth one again, as after a redo."""
    group = hand.group("p-7@0")
    for step in range(4, steps):
        hand.manifest(step, group)
        hand.result(step, {"loss": float(step)})
        if step % 10 == 0:
            hand.result(step, {"loss": -float(step)})


def test_the_surroundings_of_a_step_tell_what_the_whole_does(made: Handmade) -> None:
    long(made, 120)
    everything = History.of(made.log, made.topics)
    for first, last in ((2, 2), (3, 5), (10, 10), (57, 60), (119, 119)):
        part = History.around(made.log, made.topics, first, last)
        wanted = [h for h in everything.steps if first <= h.step <= last]
        assert [h for h in part.steps if first <= h.step <= last] == wanted
        assert [part.executed(h) for h in wanted] == [everything.executed(h) for h in wanted]
        before = [h for h in part.manifests if h.offset < wanted[0].offset]
        assert before[-1].step == first - 1, "and the manifest in front of it, which says what was under way"
        assert len(before) < 20


@pytest.mark.long
def test_a_step_is_found_by_bisection(made: Handmade) -> None:
    long(made, 120)
    for head in History.of(made.log, made.topics).manifests:
        assert find_step(made.log, made.topics, head.step) <= head.offset
    assert find_step(made.log, made.topics, 119) > made.log.ends(made.topics.steps)[0] - 60
    assert find_step(made.log, made.topics, 1) == 0


def test_the_newest_records_hold_a_manifest(made: Handmade) -> None:
    for number in range(50):
        made.write(made.topics.steps, StepResult(3, 2, number))
    newest = History.recent(made.log, made.topics, 4).newest_manifest()
    assert newest is not None and newest.step == 3


def test_a_follower_holds_what_it_is_told_to_keep(made: Handmade) -> None:
    long(made, 200)
    follower = History(keep=5)
    for record in records(made.log, made.topics.steps):
        follower.take(record)
    assert [done.result.step for done in follower.executions()] == [195, 196, 197, 198, 199]
    assert len(follower.manifests) < 80 and follower.next == made.log.ends(made.topics.steps)[0]
    assert len(follower.endings) == 2 and follower.reinforced == {1}


def test_a_head_is_what_the_whole_record_says(made: Handmade) -> None:
    written = list(records(made.log, made.topics.steps))
    artefact = Artefact("made", 1, 3, "documents", "artefacts/made.jsonl")
    long_name = Evaluation("x" * HEAD_BYTES, 7, 1, 1, 1, 0.5, (0, 1), 0.5, (0, 1), (0, 0), 1.0)
    written += [written[0]._replace(value=encode(message)) for message in (artefact, long_name)]
    types = ["manifest", "manifest", "result", "evaluation", "manifest", "result", "result", "evaluation"]
    assert [head_of(record).type for record in written] == [*types, "artefact", "evaluation"]
    assert head_of(written[-2])[3:] == (3, 1, "", "made") and head_of(written[-1]).name == long_name.name
    assert head_of(written[0])[3:] == (1, 0, "weights", "")
    assert head_of(written[0]._replace(value=b"\xc1 rubbish")).type == ""


def test_a_head_does_not_take_another_types_fields_for_its_own() -> None:
    manifest = Manifest(3, 1, "close")
    turned = dict(reversed(list(manifest.pack().items())))  # another writer's order of fields
    value = msgpack.packb({**turned, "t": "manifest", "v": 1})
    assert head_of(Record("t", 0, 9, b"", value, 1.0)) == ("manifest", 9, 1.0, 3, 1, "close", "")
