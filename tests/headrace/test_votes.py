"""Two rewarders, or two versions of one, compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ringtools import SMALL

from broker.errors import RunFileError
from broker.log import Log
from broker.messages import Vote, encode
from broker.open import open_log
from broker.run import Run
from broker.topics import Topics
from headrace.__main__ import main
from headrace.reading.votes import Choice, Comparison, compare, lines
from headrace.running.rundir import record

TOPICS = Topics("t", partitions=2)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = open_log(f"sqlite://{tmp_path}/log")
    log.create(TOPICS.specs())
    yield log
    log.close()


def cast(log: Log, name: str, values: dict[tuple[str, int], float | str | None], **fields: Any) -> None:
    """None abstains; a text is an error."""
    producer = log.producer()
    for (group_id, index), value in values.items():
        outcome = "abstain" if value is None else "error" if isinstance(value, str) else "value"
        number = value if isinstance(value, float) else None
        vote = Vote(group_id, index, name, outcome, number, f"{name} says {value}", **fields)
        producer.send(TOPICS.rewards, group_id.encode(), encode(vote))
    producer.flush()


def compared(log: Log, left: str, right: str) -> Comparison:
    return compare(log, TOPICS, Choice.of(left), Choice.of(right))


def test_agreement_correlation_and_order_are_those_of_the_samples_that_both_judged(log: Log) -> None:
    cast(log, "a", {("g", 0): 0.0, ("g", 1): 1.0, ("g", 2): 0.5, ("h", 0): 1.0, ("h", 1): None, ("i", 0): "broken"})
    cast(
        log,
        "b",
        {("g", 0): 0.0, ("g", 1): 0.5, ("g", 2): 1.0, ("h", 0): 1.0, ("h", 1): 1.0, ("j", 0): 1.0},
        shadow=True,
    )
    found = compared(log, "a", "b")
    assert (found.both, found.agreement, found.same_order) == (4, 0.5, pytest.approx(2 / 3))
    assert found.correlation == pytest.approx(0.636, abs=1e-3)
    assert (found.left.values, found.left.abstained, found.left.errors, found.left.mean) == (4, 1, 1, 0.625)
    assert [(d.group_id, d.index, d.left, d.right) for d in found.most_different] == [
        ("g", 1, 1.0, 0.5),
        ("g", 2, 0.5, 1.0),
    ]
    said = "\n".join(lines(found))
    assert "judged by both: 4 samples" in said and "g#1: 1 (a says 1.0) against 0.5 (b says 0.5)" in said
    assert json.loads(json.dumps(found.to_json()))["both"] == 4


def test_versions_of_one_rewarder_are_told_apart_by_their_beginnings(log: Log) -> None:
    cast(log, "a", {("g", 0): 0.0, ("g", 1): 1.0}, version="1f00")
    cast(log, "a", {("g", 0): 1.0, ("g", 1): 1.0}, version="2e00", shadow=True)
    found = compared(log, "a@1f", "a@2e")
    assert (found.both, found.agreement, found.left.versions, found.right.versions) == (2, 0.5, ("1f00",), ("2e00",))
    assert found.correlation is None and found.same_order is None, "one side gives one value only"
    assert compared(log, "a", "a@2").agreement == 0.5


def test_a_vote_that_counts_goes_before_a_shadow_and_the_first_before_a_second(log: Log) -> None:
    cast(log, "a", {("g", 0): 0.25}, shadow=True, version="3")
    cast(log, "a", {("g", 0): 0.5}, version="4")
    cast(log, "a", {("g", 0): 0.75}, version="5")
    assert compared(log, "a", "a").left.mean == 0.5


def test_who_has_no_vote_is_named_with_those_who_have(log: Log) -> None:
    with pytest.raises(RunFileError, match="no vote of a; there are votes of nobody"):
        compared(log, "a", "b")
    cast(log, "accuracy", {("g", 0): 1.0}, version="1f")
    with pytest.raises(RunFileError, match=r"no vote of acuracy.*accuracy@1f"):
        compared(log, "accuracy", "acuracy")


def test_the_report_command_compares_as_text_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.open(SMALL, [], tmp_path)
    record(run)
    with closing(run.open_log()) as log:
        for name, value in (("vowels", 1.0), ("other", 0.5)):
            vote = Vote("g", 0, name, "value", value, "because")
            producer = log.producer()
            producer.send(run.topics.rewards, b"g", encode(vote))
            producer.flush()
    assert main(["report", str(tmp_path), "--votes", "vowels", "other"]) == 0
    assert "judged by both: 1 samples" in capsys.readouterr().out and not (tmp_path / "report.html").exists()
    assert main(["report", str(tmp_path), "--votes", "vowels", "other", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["both"] == 1 and found["most_different"][0]["left"] == 1.0
    assert main(["report", str(tmp_path), "--votes", "vowels", "nobody"]) == 2
    assert "there are votes of other, vowels" in capsys.readouterr().err
