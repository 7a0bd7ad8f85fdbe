"""``headrace broker`` on a handmade log: dead letters are shown, replayed and dropped; a trim removes what nobody needs."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from handmade import Handmade

from broker.messages import DeadLetter, PlannerState
from headrace.__main__ import main
from headrace.reading.verify import verify


@pytest.fixture
def home(tmp_path: Path) -> Path:
    hand = Handmade(tmp_path / "log").whole()
    hand.run(tmp_path)
    ends = {t: hand.log.ends(t) for t in (hand.topics.prompts, hand.topics.trajectories, hand.topics.rewards)}
    partition, offset = hand.prompts["p-6@0"]  # the outstanding one
    low = {**ends[hand.topics.prompts], partition: offset}
    state = PlannerState(
        fed=ends[hand.topics.prompts], outstanding=("p-6@0",), prompts=low, trajectories=ends[hand.topics.trajectories],
        rewards=ends[hand.topics.rewards],
    )  # fmt: skip
    hand.manifest(3, kind="close", stage=1, state=state)
    for offset, value in enumerate((b"first", b"second", b"third")):
        letter = DeadLetter(hand.topics.rewards, 1, offset, b"key", value, "no vote", "learner-0")
        hand.write(hand.topics.deadletters, letter)
    hand.close()
    return tmp_path


def broker(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    status = main(["broker", *arguments, "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return list(json.loads(out))


def test_dead_letters_are_listed_shown_replayed_and_dropped(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = broker(capsys, "dlq", "list", str(home))
    assert [row["offset"] for row in listed] == [0, 1, 2] and listed[0]["error"] == "no vote"
    (shown,) = broker(capsys, "dlq", "show", str(home), "1")
    assert bytes.fromhex(str(shown["value"])) == b"second" and shown["key"] == "key"
    assert broker(capsys, "dlq", "replay", str(home), "1") == [{"offset": 1, "became": "replayed"}]
    tail = broker(capsys, "tail", str(home), "--topic", "rewards", "--count", "1")
    assert tail[0]["partition"] == 1
    assert [row["offset"] for row in broker(capsys, "dlq", "list", str(home))] == [0, 2]
    broker(capsys, "dlq", "drop", str(home))
    assert broker(capsys, "dlq", "list", str(home)) == []
    every = broker(capsys, "dlq", "list", str(home), "--all")
    assert [row["became"] for row in every] == ["dropped", "replayed", "dropped"]
    assert main(["broker", "dlq", "show", str(home), "77"]) == 3
    assert "no dead letter at offset 77" in capsys.readouterr().err


def test_a_row_of_the_data_is_replayed_by_asking_it_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no record to write into a topic: the learner hears of it, and asks the row once more."""
    with closing(Handmade(home / "log")) as hand:
        hand.write(
            hand.topics.deadletters, DeadLetter("data.sums", 0, 7, b"7", b"", "column 'prompt' is a list", "learner")
        )
    assert broker(capsys, "dlq", "replay", str(home), "3") == [{"offset": 3, "became": "replayed"}]
    assert not [t for t in broker(capsys, "topics", str(home)) if "data" in str(t["topic"])]


def test_a_trim_removes_what_nobody_needs_and_the_audit_knows(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from headrace.running.rundir import reopen

    assert [row["removable"] for row in broker(capsys, "trim", str(home), "--dry-run")] == [0, 0, 0], (
        "no checkpoint yet"
    )
    checkpoint(home, version=3)
    before = {row["topic"]: row["records"] for row in broker(capsys, "topics", str(home))}
    removed = {row["topic"]: row["removed"] for row in broker(capsys, "trim", str(home))}
    assert any(removed.values())
    after = {row["topic"]: row["records"] for row in broker(capsys, "topics", str(home))}
    assert all(before[t] - after[t] == count for t, count in removed.items())
    run = reopen(home)
    log = run.open_log()
    audit = verify(log, run.topics)
    log.close()
    assert audit.problems == [] and audit.expired > 0 and audit.outstanding == 1


def checkpoint(home: Path, version: int) -> None:
    """A checkpoint of that version, as far as its place in the run is concerned."""
    from learner.training.checkpoint import Checkpoints, Progress

    def save(directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"")

    Checkpoints(home / "checkpoints").save(Progress(version, 1, 2, False, 99), {}, save, keep=2)


def test_init_makes_the_topics_and_topics_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('[run]\nname = "fresh"\nmodel = "m"\n[broker]\npartitions = 3\n')
    made = broker(capsys, "init", "run.toml")
    assert {row["topic"]: row["partitions"] for row in made} == {
        "fresh.prompts": 3, "fresh.trajectories": 3, "fresh.rewards": 3, "fresh.steps": 1, "fresh.policy": 1, "fresh.deadletters": 1,
    }  # fmt: skip
    assert main(["broker", "init", "run.toml", "--set", "broker.partitions=4"]) == 3
    assert "partitions" in capsys.readouterr().err


def test_top_shows_a_run_from_elsewhere(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", str(home), "--once"]) == 0
    out = capsys.readouterr().out
    assert "held-out after: pass@1 0.750" in out and "step" in out and "daemons 0/0" in out
