"""Isolation and the worker: a judge may hang, die or lie; every sample gets exactly one verdict."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from awaylog import Away
from patience import HANG
from prometheus_client import CollectorRegistry
from test_math import sample

from broker.errors import HeadraceError, LogUnavailable, MessageError, RunFault, RunFileError
from broker.log import Log
from broker.messages import Outage, Vote, encode
from broker.open import open_log
from broker.runfile import RunFile
from broker.topics import Topics
from headrace.reading.records import scan
from monitoring.metrics import BrokerMetrics, RewarderMetrics, SystemMetrics
from rewarders.config import RewarderTable, rewarder_tables
from rewarders.reasoning_gym import ReasoningGym
from rewarders.registry import judge_factory, load_rewarder
from rewarders.worker import HOPELESS, RewarderWorker

ROOT = Path(__file__).resolve().parents[2]
TOPICS = Topics("t", partitions=2)
ODD = '''
"""Judges that misbehave, each when the text says so."""
import os, sys, time
from dataclasses import dataclass
from rewarders.rewarder import Reward

@dataclass(frozen=True)
class Odd:
    bonus: float = 0.0

    def __call__(self, sample):
        text = sample.text
        if text == "hang": time.sleep(100)
        while text == "wait" and not os.path.exists(os.environ["GO"]): time.sleep(0.05)
        if text == "die": os._exit(3)
        if text == "exit": sys.exit(3)
        if text == "raise": raise ValueError("no such thing")
        if text == "memory": bytearray(4 << 30)
        if text == "infinite": return Reward(float("1e400"))
        if text == "string": return "five"
        if text == "print": print("x" * 100000)
        if text == "abstain": return None
        return Reward(len(text) + self.bonus, "its length")
'''


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = open_log(f"sqlite://{tmp_path}/log")
    log.create(TOPICS.specs())
    yield log
    log.close()


def worker_of(log: Log, base: Path, name: str = "odd-0", **table: Any) -> RewarderWorker:
    (base / "odd.py").write_text(ODD)
    registry = CollectorRegistry()
    metrics: tuple[Any, ...] = (
        RewarderMetrics(registry, "r"),
        BrokerMetrics(registry),
        SystemMetrics(registry, "rewarder"),
    )
    fields = {"use": "odd.py:Odd", "timeout": 1.5, "attempts": 2, "bonus": 0.5, **table}
    if "worker" in fields:
        del fields["timeout"], fields["attempts"], fields["bonus"]
    settings = RewarderTable.model_validate(fields)
    return RewarderWorker(name, "r", log, TOPICS, settings, base, *metrics)


def publish(log: Log, texts: list[str], first: int = 0, mix: str = "r") -> None:
    producer = log.producer()
    for i, text in enumerate(texts, first):
        it = sample(text)
        object.__setattr__(it, "group_id", f"g-{i}@0")
        object.__setattr__(it, "rewards", {mix: 1.0})
        producer.send(TOPICS.trajectories, it.group_id.encode(), encode(it))
    producer.flush()


def turn_until(worker: RewarderWorker, log: Log, committed: int) -> None:
    deadline = time.monotonic() + HANG
    while sum(log.committed(TOPICS.group("rewarder.r"), TOPICS.trajectories).values()) < committed:
        with contextlib.suppress(LogUnavailable):  # as ``keep_going``
            worker.round()
        assert time.monotonic() < deadline


def votes(log: Log, moved: bool = False) -> dict[str, Vote]:
    """By group. Where partitions have ``moved`` a sample may be judged again (at least once), but never differently."""
    found = [m for _, m in scan(log, TOPICS.rewards) if isinstance(m, Vote)]
    distinct = {(v.group_id, v.index, v.outcome, v.value) for v in found}
    assert len({(v.group_id, v.index) for v in found}) == (len(distinct) if moved else len(found))
    return {v.group_id: v for v in found}


@pytest.mark.long
def test_whatever_a_judge_does_every_sample_gets_one_verdict(log: Log, tmp_path: Path) -> None:
    texts = ["four", "hang", "die", "exit", "raise", "memory", "infinite", "string", "print", "abstain", "seven77"]
    publish(log, texts)
    worker = worker_of(log, tmp_path)
    turn_until(worker, log, len(texts))
    worker.close()
    found = {texts[int(g[2:-2])]: v for g, v in votes(log).items()}
    assert found["four"].value == 4.5 and found["seven77"].value == 7.5 and found["print"].value == 5.5
    assert found["abstain"].outcome == "abstain"
    for text, why in {"hang": "timeout", "die": "killed", "exit": "SystemExit", "raise": "no such thing", "memory": "MemoryError", "infinite": "finite", "string": "str"}.items():  # fmt: skip
        assert found[text].outcome == "error" and found[text].value is None and why in found[text].why, (
            text,
            found[text],
        )
    assert found["hang"].attempts == 2 and found["raise"].attempts == 1


def test_a_rewarder_that_fails_on_all_it_gets_stops_with_its_reason(log: Log, tmp_path: Path) -> None:
    publish(log, ["raise"] * HOPELESS)
    worker = worker_of(log, tmp_path)
    with pytest.raises(RunFault, match=f"first {HOPELESS} samples.*no such thing"):
        turn_until(worker, log, HOPELESS)
    worker.close()
    assert len(votes(log)) == HOPELESS, "its verdicts are written all the same"


def test_votes_that_the_log_does_not_take_come_when_it_is_back(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(log, ["a", "bb", "ccc"])
    make = log.producer
    monkeypatch.setattr(log, "producer", lambda: Away(make(), sends=3, flushes=1))
    worker = worker_of(log, tmp_path)
    worker._health.lost("not yet")  # its end is told in the same rounds
    turn_until(worker, log, 3)
    worker.close()
    assert {g: v.value for g, v in votes(log).items()} == {"g-0@0": 1.5, "g-1@0": 2.5, "g-2@0": 3.5}
    told = [m.away for _, m in scan(log, TOPICS.rewards) if isinstance(m, Outage)]
    assert told[0] and not told[-1]


@pytest.mark.long
def test_a_slow_sample_holds_nobody_up(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in one batch with those behind it, which another judge then takes; one child is left waiting for each."""
    monkeypatch.setenv("GO", str(tmp_path / "go"))
    texts = ["wait", *(f"text {i}" for i in range(50))]
    publish(log, texts)
    worker = worker_of(log, tmp_path, processes=2, timeout=100.0)
    deadline = time.monotonic() + HANG
    while len(votes(log)) < 50:
        worker.round()
        assert time.monotonic() < deadline
    assert "g-0@0" not in votes(log)
    (tmp_path / "go").touch()
    turn_until(worker, log, len(texts))
    publish(log, ["after"] * 64, 100)
    turn_until(worker, log, len(texts) + 64)
    worker.close()
    assert {v.value for v in votes(log).values()} == {4.5, 6.5, 7.5, 5.5}


def test_one_good_verdict_is_enough_to_go_on(log: Log, tmp_path: Path) -> None:
    publish(log, ["four"] + ["raise"] * HOPELESS)
    worker = worker_of(log, tmp_path)
    turn_until(worker, log, HOPELESS + 1)
    worker.close()


def test_a_number_is_a_reward(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        "class Plain:\n    def __call__(self, sample):\n        return {'a': 2, 'b': True, 'c': 0.25, 'd': None}[sample.text]\n"
    )
    judge = judge_factory({"use": "plain.py:Plain", "options": {}, "base": str(tmp_path)})
    found = [judge([encode(sample(text))])[0] for text in "abcd"]
    assert found == [{"value": 2.0}, {"value": 1.0}, {"value": 0.25}, None]


VALUES = [
    ("numpy.bool_(True)", 1.0), ("numpy.float16(0.5)", 0.5), ("numpy.array(0.25)", 0.25), ("torch.tensor(0.75)", 0.75), ("Decimal('0.5')", 0.5),
    ("2**70", 2.0**70), ("-0.0", 0.0), ("None", None), ("float('nan')", "finite"), ("numpy.inf", "finite"), ("10**400", "finite"), ("{'value': 1}", "returned dict"),
    ("[1.0]", "returned list"), ("'1'", "returned str"), ("1j", "returned complex"), ("(x for x in [1])", "returned generator"), ("Reward", "returned type"),
    ("numpy.ones(2)", "returned ndarray"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "wanted"), VALUES, ids=[code for code, _ in VALUES])
def test_whatever_a_rewarder_returns_is_a_number_an_abstention_or_an_error(
    tmp_path: Path, code: str, wanted: float | str | None
) -> None:
    imports = (
        "import numpy\nfrom decimal import Decimal\nfrom rewarders.rewarder import Reward\n"
        + "import torch\n" * ("torch" in code)
    )
    (tmp_path / "any.py").write_text(f"{imports}class Any:\n    def __call__(self, sample):\n        return {code}\n")
    judge = judge_factory({"use": "any.py:Any", "options": {}, "base": str(tmp_path)})
    if isinstance(wanted, str):
        with pytest.raises(MessageError, match=wanted):
            judge([encode(sample("x"))])
    else:
        assert judge([encode(sample("x"))]) == [None if wanted is None else {"value": wanted}]


@pytest.mark.parametrize(
    "code", ["numpy.ones(len(samples))", "(1.0 for s in samples)", "[1.0] * len(samples)", "tuple(1 for s in samples)"]
)
def test_verdicts_on_a_group_may_come_as_any_row_of_numbers(tmp_path: Path, code: str) -> None:
    source = f"import numpy\nclass Any:\n    per_group = True\n    def judge(self, samples):\n        return {code}\n"
    (tmp_path / "rows.py").write_text(source)
    judge = judge_factory({"use": "rows.py:Any", "options": {}, "base": str(tmp_path)})
    assert judge([encode(sample("x"))] * 3) == [{"value": 1.0}] * 3


def test_what_takes_a_sample_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(
        "def rate(sample):\n    return 1.0\nclass Rate:\n    def __call__(self, sample):\n        return 1.0\nrated = Rate()\n"
        "def made():\n    return Rate()\n"
    )
    for name in ("rate", "rated"):
        with pytest.raises(RunFileError, match=f"bare.py:{name}' takes a sample itself; name a class"):
            load_rewarder(f"bare.py:{name}", {}, tmp_path)
    assert load_rewarder("bare.py:made", {}, tmp_path)(sample("x")) == 1.0, (
        "a function that makes one is as good as a class"
    )


@pytest.mark.long
def test_other_mixes_and_poison_are_passed_by(log: Log, tmp_path: Path) -> None:
    publish(log, ["a", "b"], mix="another")
    producer = log.producer()
    producer.send(TOPICS.trajectories, b"k", b"\xc1 poison")
    producer.flush()
    publish(log, ["ccc"], 5)
    worker = worker_of(log, tmp_path)
    turn_until(worker, log, 4)
    worker.close()
    assert {g: v.value for g, v in votes(log).items()} == {"g-5@0": 3.5}


@pytest.mark.long
def test_two_workers_share_and_one_that_vanishes_leaves_its_samples_to_the_other(log: Log, tmp_path: Path) -> None:
    one, two = worker_of(log, tmp_path, "odd-0"), worker_of(log, tmp_path, "odd-1")
    publish(log, [f"text {i}" for i in range(40)])
    deadline = time.monotonic() + HANG
    while (
        sum(log.committed(TOPICS.group("rewarder.r"), TOPICS.trajectories).values()) < 40
        or len(one._consumer.assignment()) > 1
    ):
        one.round()
        two.round()
        assert time.monotonic() < deadline
    assert len(votes(log, moved=True)) == 40
    assert len(one._consumer.assignment()) == len(two._consumer.assignment()) == 1
    two._judges.close()  # it is never asked again, and its lease runs out
    publish(log, [f"more {i}" for i in range(20)], 100)
    turn_until(one, log, 60)
    one.close()
    assert len(votes(log, moved=True)) == 60


def test_a_judge_that_cannot_be_made_says_why(log: Log, tmp_path: Path) -> None:
    worker = worker_of(log, tmp_path, use="odd.py:Missing")
    publish(log, ["x"])
    with pytest.raises(HeadraceError, match="Missing"):
        turn_until(worker, log, 1)


@pytest.mark.long
@pytest.mark.parametrize(
    "task", ["basic_arithmetic", "leg_counting", "number_sorting", "spell_backward", "arc_agi", "rearc"]
)
def test_reasoning_gym_scores_by_the_tasks_own_rules(task: str) -> None:
    from learner.data.reasoning_gym import ReasoningGymTasks

    row = ReasoningGymTasks(tasks=[task], seed=3).row(4)
    judge = ReasoningGym()
    right = judge(sample(f"<think>x</think><answer>{row.answer}</answer>", row.answer, metadata=dict(row.metadata)))
    wrong = judge(sample("<think>x</think><answer>zebra 99999</answer>", row.answer, metadata=dict(row.metadata)))
    assert right is not None and wrong is not None and right.value == 1.0 and wrong.value < 0.5
    assert judge(sample("no entry")) is None


def test_tables_and_classes_are_checked(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    assert load_rewarder("odd:Odd", {"bonus": 2.0}, tmp_path)(sample("abc")).value == 5.0  # type: ignore[union-attr]
    with pytest.raises(RunFileError, match=r"'bonas'.*'bonus'"):
        load_rewarder("odd.py:Odd", {"bonas": 2.0}, tmp_path)
    with pytest.raises(RunFileError, match="cannot be loaded"):
        load_rewarder("nowhere:Odd", {}, tmp_path)
    with pytest.raises(RunFileError, match="module:Class"):
        load_rewarder("odd", {}, tmp_path)
    (tmp_path / "run.toml").write_text("[rewarders.a]\nexternal = true\nuse = 'x:Y'\n")
    with pytest.raises(RunFileError, match=r"\[rewarders.a\] needs either"):
        rewarder_tables(RunFile.read(tmp_path / "run.toml"))


@pytest.mark.long
def test_a_rewarder_is_small(tmp_path: Path) -> None:
    """The daemon's own process, ready to consume, takes less than 120 MB."""
    (tmp_path / "run.toml").write_text(
        "[run]\nname = 'x'\nmodel = 'm'\n[rewarders.f]\nuse = 'rewarders.format:Format'\n"
    )
    process = subprocess.Popen([sys.executable, "-m", "rewarders", str(tmp_path / "run.toml"), "--dir", str(tmp_path / "run"), "--rewarder", "f"], cwd=ROOT, stderr=subprocess.PIPE)  # fmt: skip
    try:
        assert process.stderr is not None
        assert b"serving rewarders.format:Format" in process.stderr.readline()
        assert psutil.Process(process.pid).memory_info().rss < 120 << 20
    finally:
        process.terminate()
        assert process.wait(HANG) == 0
        process.stderr.close()
