"""What a rewarder's worker owes beside a verdict: patience in outages, whole groups, shadows, history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import until
from test_math import sample
from test_rewarder_worker import TOPICS, publish, turn_until, votes, worker_of

from broker.errors import HeadraceError, RunFileError
from broker.log import Log
from broker.messages import ChatMessage, Outage, Reply, Vote, encode
from broker.open import open_log
from broker.runfile import RunFile
from headrace.reading.records import scan
from rewarders.__main__ import main
from rewarders.config import RewarderTable, rewarder_tables
from rewarders.history import voted_on
from rewarders.registry import load_any, version_of
from rewarders.worker import RewarderWorker

JUDGES = '''
"""Judges that ask something outside, that compare, and that are bounded."""
import os, time
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from rewarders.rewarder import GroupRewarder, Outage, Reward

@dataclass(frozen=True)
class Asks:
    """Asks a server, which is there while the file ``up`` is."""
    up: str = ""
    kind: str = "outage"

    def __call__(self, sample):
        if not os.path.exists(self.up):
            raise {"outage": Outage, "connection": ConnectionResetError, "bug": KeyError}[self.kind]("nobody answers")
        return np.float32(len(sample.text))

@dataclass(frozen=True)
class Rank(GroupRewarder):
    """How many samples of the group are shorter."""

    def judge(self, samples):
        return [float(sum(len(o.text) < len(s.text) for o in samples)) for s in samples]

@dataclass(frozen=True)
class Few(GroupRewarder):
    def judge(self, samples):
        return [1.0]

@dataclass(frozen=True)
class Bounded:
    bounded: ClassVar[bool] = True

    def __call__(self, sample):
        if sample.text == "bomb": time.sleep(3600)
        if sample.text == "memory": bytearray(4 << 30)
        return Reward(1.0, "fine \\ud800", answer="7")

@dataclass(frozen=True)
class Hangs:
    def __post_init__(self):
        with open(__file__ + ".starts", "a") as file:
            file.write("x")
        time.sleep(3600)

    def __call__(self, sample):
        return 1.0

@dataclass(frozen=True)
class Timed:
    timeout: float = 3.0

    def __call__(self, sample):
        return self.timeout
'''


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = open_log(f"sqlite://{tmp_path}/log")
    log.create(TOPICS.specs())
    yield log
    log.close()


def serving(log: Log, base: Path, name: str, **table: Any) -> RewarderWorker:
    (base / "judges.py").write_text(JUDGES)
    fields = {"use": f"judges.py:{name}", "worker": {"timeout": 1.0, **table.pop("worker", {})}, **table}
    return worker_of(log, base, **fields)


def publish_group(log: Log, group_id: str, texts: list[str | None], mix: str = "r", **fields: Any) -> None:
    """The samples of a group; None is one that does not come (yet)."""
    producer = log.producer()
    for index, text in enumerate(texts):
        if text is None:
            continue
        it = sample(text)
        named = {"group_id": group_id, "index": index, "group_size": len(texts), "rewards": {mix: 1.0}, **fields}
        for name, value in named.items():
            object.__setattr__(it, name, value)
        producer.send(TOPICS.trajectories, group_id.encode(), encode(it))
    producer.flush()


def all_votes(log: Log) -> list[Vote]:
    return [m for _, m in scan(log, TOPICS.rewards) if isinstance(m, Vote)]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["outage", "connection", "bug"])
def test_an_outage_holds_its_samples_and_heals_by_itself(
    log: Log, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    up = tmp_path / "up"
    up.touch()
    worker = serving(log, tmp_path, "Asks", up=str(up), kind=kind)
    publish(log, ["four"] * 40)
    turn_until(worker, log, 40)
    up.unlink()
    publish(log, ["seven77"] * 30, 100)
    until(lambda: worker._health.out, doing=worker.round)
    page = worker._health.page()
    assert page["state"] == "outage" and "nobody answers" in page["error"] and "judges.py:" in page["error"]
    assert "rewarder r is out of order" in caplog.text and worker._metrics.outage._value.get() == 1
    assert len(all_votes(log)) == 40
    up.touch()
    turn_until(worker, log, 70)
    worker.close()
    found = votes(log)
    assert len(found) == 70 and {v.outcome for v in found.values()} == {"value"}
    assert worker._metrics.outage._value.get() == 0
    began, *_, ended = [m for _, m in scan(log, TOPICS.rewards) if isinstance(m, Outage)]
    assert began.away and began.rewarder == "r" and "nobody answers" in began.error and began.held > 0
    assert not ended.away and ended.worker == began.worker and not ended.error


@pytest.mark.long
def test_a_worker_that_ends_in_an_outage_leaves_its_samples_to_the_next(log: Log, tmp_path: Path) -> None:
    up = tmp_path / "up"
    worker = serving(log, tmp_path, "Asks", up=str(up))
    publish(log, ["four"] * 10)
    until(lambda: worker._health.holding == 10, doing=worker.round)
    worker.close()
    assert all_votes(log) == []
    up.touch()
    worker = serving(log, tmp_path, "Asks", up=str(up))
    turn_until(worker, log, 10)
    worker.close()
    assert len(votes(log)) == 10


@pytest.mark.long
def test_an_answer_that_runs_out_of_time_or_memory_is_wrong_for_a_bounded_judge(log: Log, tmp_path: Path) -> None:
    texts = ["a", "bomb", "memory", "b"]
    publish(log, texts)
    worker = serving(log, tmp_path, "Bounded")
    turn_until(worker, log, 4)
    worker.close()
    found = {texts[int(g[2:-2])]: v for g, v in votes(log).items()}
    assert [(found[t].outcome, found[t].value, found[t].cause) for t in texts] == [
        ("value", 1.0, ""), ("value", 0.0, "timeout"), ("value", 0.0, "killed"), ("value", 1.0, "")
    ]  # fmt: skip
    assert found["a"].answer == "7" and found["a"].why == "fine ?" and "judges.py:" in found["bomb"].why
    assert len({v.version for v in found.values()}) == 1 and found["a"].version


@pytest.mark.long
def test_the_run_file_says_what_a_time_out_is(log: Log, tmp_path: Path) -> None:
    publish(log, ["a", "bomb", "b"])
    worker = serving(log, tmp_path, "Bounded", worker={"on_timeout": "error", "attempts": 1})
    turn_until(worker, log, 3)
    worker.close()
    found = votes(log)["g-1@0"]
    assert (found.outcome, found.cause, found.attempts) == ("error", "timeout", 1)


@pytest.mark.long
def test_one_process_is_relieved_by_a_spare_while_a_sample_holds_it_up(log: Log, tmp_path: Path) -> None:
    publish(log, ["a"] * 20)
    worker = serving(log, tmp_path, "Bounded", worker={"timeout": 3600.0, "attempts": 1})
    turn_until(worker, log, 20)
    publish(log, ["bomb"] + ["b"] * 20, 100)
    until(lambda: len(all_votes(log)) == 40, doing=worker.round)
    assert "g-100@0" not in votes(log)
    worker.close()


def test_a_group_is_judged_at_once_when_it_is_whole(log: Log, tmp_path: Path) -> None:
    worker = serving(log, tmp_path, "Rank")
    publish_group(log, "g-1@0", ["a", None, "ccc"])
    publish_group(log, "g-2@0", ["bb", "a"])
    until(lambda: len(all_votes(log)) == 2, doing=worker.round)
    assert {(v.group_id, v.index): v.value for v in all_votes(log)} == {("g-2@0", 0): 1.0, ("g-2@0", 1): 0.0}
    worker.close()
    worker = serving(log, tmp_path, "Rank")  # what waited is read again
    publish_group(log, "g-1@0", [None, "bb", "again"])
    until(lambda: len(all_votes(log)) >= 5, doing=worker.round)
    worker.close()
    found = {v.index: v.value for v in all_votes(log) if v.group_id == "g-1@0"}
    assert found == {0: 0.0, 1: 1.0, 2: 2.0}
    assert log.lag(TOPICS.group("rewarder.r"), TOPICS.trajectories) == 0


def test_a_group_that_never_comes_whole_is_given_up(log: Log, tmp_path: Path) -> None:
    worker = serving(log, tmp_path, "Rank", worker={"group_patience": 0.2})
    publish_group(log, "g-1@0", ["a", None])
    turn_until(worker, log, 1)
    worker.close()
    assert all_votes(log) == []


@pytest.mark.long
def test_a_group_judged_wrongly_is_an_error_of_each_sample(log: Log, tmp_path: Path) -> None:
    worker = serving(log, tmp_path, "Few")
    publish_group(log, "g-1@0", ["a", "bb"])
    turn_until(worker, log, 2)
    worker.close()
    found = all_votes(log)
    assert [v.outcome for v in found] == ["error"] * 2 and "one verdict for each of the 2 samples" in found[0].why


@pytest.mark.long
def test_a_shadow_judges_every_training_sample_and_its_votes_say_so(log: Log, tmp_path: Path) -> None:
    worker = serving(log, tmp_path, "Rank", shadow=True)
    publish_group(log, "g-1@0", ["a", "bb"], mix="another")
    publish_group(log, "g-2@0", ["a", "bb"], mix="r")  # fed before it was made a shadow
    publish_group(log, "g-3@0", ["a", "bb"], mix="another", purpose="eval")
    turn_until(worker, log, 6)
    worker.close()
    assert {(v.group_id, v.shadow) for v in all_votes(log)} == {("g-1@0", True), ("g-2@0", False)}


@pytest.mark.long
def test_history_is_judged_to_its_end_and_counts_only_where_a_vote_is_missing(tmp_path: Path) -> None:
    (tmp_path / "judges.py").write_text(JUDGES)
    text = "[run]\nname = 't'\nmodel = 'm'\n[broker]\npartitions = 2\n[rewarders.r]\nuse = 'judges.py:Bounded'\n"
    (tmp_path / "run.toml").write_text(text)
    log = open_log(f"sqlite://{tmp_path}/run/log")
    log.create(TOPICS.specs())
    publish_group(log, "g-1@0", ["a", "b"], mix="another")
    publish_group(log, "g-2@0", ["a", "b"])
    producer = log.producer()
    producer.send(TOPICS.rewards, b"g-2@0", encode(Vote("g-2@0", 1, "r", "value", 0.5, version="old")))
    producer.flush()
    again = [str(tmp_path / "run.toml"), "--dir", str(tmp_path / "run"), "--rewarder", "r"]
    for _ in range(2):  # the second time there is nothing left
        assert main([*again, "--from", "beginning", "--until", "now"]) == 0
    found = {(v.group_id, v.index): v.shadow for v in all_votes(log) if v.version != "old"}
    assert found == {("g-1@0", 0): True, ("g-1@0", 1): True, ("g-2@0", 0): False, ("g-2@0", 1): True}
    assert len(all_votes(log)) == 5 and voted_on(log, TOPICS, "r") == {("g-2@0", 0), ("g-2@0", 1)}
    assert log.committed(TOPICS.group("rewarder.r"), TOPICS.trajectories) == {}
    log.close()


@pytest.mark.long
def test_the_history_of_episodes_is_judged_as_a_whole(tmp_path: Path) -> None:
    text = (
        "[run]\nname = 't'\nmodel = 'm'\n[broker]\npartitions = 2\n[rewarders.r]\nuse = 'rewarders.outcome:Outcome'\n"
    )
    (tmp_path / "run.toml").write_text(text)
    log = open_log(f"sqlite://{tmp_path}/run/log")
    log.create(TOPICS.specs())
    said = (ChatMessage("assistant", "5"), ChatMessage("user", "Higher"), ChatMessage("assistant", "7"))
    replies = (Reply(0, 1.0, 2.0, 0.5, 0.25), Reply(2, 3.0, 4.0))
    publish_group(
        log, "g-1@0", ["7", "7"], "another", environment="game", turns=said, replies=replies, outcome=0.75, why="two guesses"
    )  # fmt: skip
    rewarder = [str(tmp_path / "run.toml"), "--dir", str(tmp_path / "run"), "--rewarder", "r"]
    assert main([*rewarder, "--from", "beginning", "--until", "now"]) == 0
    found = all_votes(log)
    assert [(v.value, v.why, v.shadow) for v in found] == [(0.75, "two guesses", True)] * 2
    assert all(v.spans and v.spans[0].value == 0.25 for v in found), "what a reply is worth goes along"
    log.close()


@pytest.mark.long
def test_a_rewarder_that_hangs_when_it_is_made_stops_with_the_reason(log: Log, tmp_path: Path) -> None:
    publish(log, ["a"])
    worker = serving(log, tmp_path, "Hangs", worker={"start_timeout": 4.0})
    with pytest.raises(HeadraceError, match=r"has not started.*judges.py:\d+ in __post_init__"):
        turn_until(worker, log, 1)
    assert (tmp_path / "judges.py.starts").read_text() == "x", "it is not tried again"
    worker.close()


def test_the_workers_keys_and_the_rewarders_cannot_be_taken_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "judges.py").write_text(JUDGES)

    def table(text: str) -> RewarderTable:
        (tmp_path / "run.toml").write_text(f"[rewarders.x]\nuse = 'judges.py:Timed'\n{text}")
        return rewarder_tables(RunFile.read(tmp_path / "run.toml"))["x"]

    with pytest.raises(
        RunFileError, match=r"timeout may be the worker's or an option of Timed.*\[rewarders.x.worker\]"
    ):
        table("timeout = 5\n")
    both = table("timeout = 5\n[rewarders.x.worker]\ntimeout = 7\n")
    assert (both.options, both.worker.timeout) == ({"timeout": 5}, 7.0)
    flat = table("memory_mb = 99\nworkers = 2\n")
    assert (flat.options, flat.worker.memory_mb, flat.workers) == ({}, 99, 2)
    with pytest.raises(RunFileError, match="may be the worker's"):
        load_any("judges.py:Timed", {}, tmp_path, ["timeout"])
    with pytest.raises(RunFileError, match=r"\[rewarders.x\] unknown key 'worker.timout'.*'timeout'"):
        table("[rewarders.x.worker]\ntimout = 7\n")
    (tmp_path / "run.toml").write_text(
        "[run]\nrewards = {x = 1}\n[rewarders.x]\nuse = 'judges.py:Timed'\nshadow = true\n"
    )
    with pytest.raises(RunFileError, match="shadow"):
        rewarder_tables(RunFile.read(tmp_path / "run.toml"))


def test_the_version_follows_code_and_options(tmp_path: Path) -> None:
    def version(options: dict[str, Any], code: str = JUDGES, where: str = "a") -> str:
        base = tmp_path / where
        base.mkdir(exist_ok=True)
        (base / "judges.py").write_text(code)
        return version_of(load_any("judges.py:Timed", options, base), options, base)

    first = version({})
    assert version({}) == first and version({"timeout": 2.0}) != first
    assert version({}, JUDGES + "\n# another\n", "b") != first
