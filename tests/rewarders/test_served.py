"""The rewarders that judge groups, load models or ask servers, each in the real worker and its judging processes."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judging import Remote
from patience import HANG
from spoken import spoken
from test_rewarder_worker import TOPICS, worker_of

from broker.log import Log
from broker.messages import Vote, encode
from broker.open import open_log
from headrace.reading.records import scan
from rewarders.worker import RewarderWorker


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = open_log(f"sqlite://{tmp_path}/log")
    log.create(TOPICS.specs())
    yield log
    log.close()


def publish(log: Log, groups: list[list[str]], **fields: Any) -> None:
    producer = log.producer()
    for g, texts in enumerate(groups):
        for i, text in enumerate(texts):
            it = spoken(text, group_id=f"g-{g}@0", index=i, group_size=len(texts), **fields)
            producer.send(TOPICS.trajectories, it.group_id.encode(), encode(it))
    producer.flush()


def votes(log: Log) -> dict[str, list[float | None]]:
    """The values of each group, by index."""
    found = sorted(
        (m for _, m in scan(log, TOPICS.rewards) if isinstance(m, Vote)), key=lambda v: (v.group_id, v.index)
    )
    assert not [v for v in found if v.outcome == "error"], found
    return {name: [v.value for v in found if v.group_id == name] for name in sorted({v.group_id for v in found})}


def judged(log: Log, worker: RewarderWorker, many: int) -> dict[str, list[float | None]]:
    deadline = time.monotonic() + HANG
    while sum(map(len, votes(log).values())) < many:
        worker.round()
        assert time.monotonic() < deadline
    worker.close()
    return votes(log)


def test_a_group_with_a_rewarder_inside_that_lies_beside_the_run_file(log: Log, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Right:\n    def __call__(self, sample):\n        return float(sample.text.startswith('5'))\n"
    )
    publish(log, [["5", "6"], ["5", "5 "]], tokens=10, limit=100)
    worker = worker_of(
        log, tmp_path, use="rewarders.length:CalibratedLength", correct={"use": "mine.py:Right"}, worker={}
    )
    assert judged(log, worker, 4) == {"g-0@0": pytest.approx([-0.05, -0.05]), "g-1@0": pytest.approx([-0.1, -0.1])}


@pytest.mark.slow
def test_a_model_judges_groups_in_the_judging_process(log: Log, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from learner.model.load import save_tokenizer

    tiny = Path(__file__).resolve().parents[2] / "recipes" / "tiny_model"
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tiny, num_labels=1)).save_pretrained(
        tmp_path / "rm"
    )
    save_tokenizer(str(tiny), tmp_path / "rm")
    publish(log, [["5", "<think>never"], ["it is 6", "6"]])
    options = {
        "model": str(tmp_path / "rm"),
        "device": "cpu",
        "worker": {"memory_mb": 0, "timeout": 60.0, "start_timeout": 110.0},
    }
    found = judged(log, worker_of(log, tmp_path, use="rewarders.reward_model:RewardModel", **options), 4)
    assert found["g-0@0"][1] == 0.0 and all(0 < v < 1 for v in (found["g-0@0"][0], *found["g-1@0"]) if v is not None)


@pytest.mark.long
def test_a_judge_that_is_away_holds_the_samples_until_it_is_there(log: Log, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "url": f"http://127.0.0.1:{port}/v1",
        "model": "m",
        "tries": 2,
        "backoff": 0.05,
        "trip": 2,
        "cool": 0.3,
        "worker": {"timeout": 30.0},
    }
    worker = worker_of(log, tmp_path, use="rewarders.judge:Judge", **options)
    publish(log, [["5"], ["55"], ["555"], ["<think>never"]])
    deadline = time.monotonic() + HANG
    while not worker._health.out:
        worker.round()
        assert time.monotonic() < deadline
    assert set(votes(log)) <= {"g-3@0"}, "what needs no judge may be judged; nothing else is voted on"
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("judge_server.py")), str(port)], stdout=subprocess.PIPE
    )
    try:
        found = judged(log, worker, 4)
    finally:
        server.kill()
        server.wait()
    assert [found[f"g-{i}@0"][0] for i in range(4)] == pytest.approx([1 / 9, 2 / 9, 3 / 9, 0.0])


def test_a_tournament_over_http(log: Log, tmp_path: Path, remote: Remote) -> None:
    publish(log, [["a", "aaa", "aa"]])
    pairs = {"use": "rewarders.judge:PairJudge", "url": f"{remote.url}/v1", "model": "m"}
    worker = worker_of(log, tmp_path, use="rewarders.comparison:Tournament", judge_of_pairs=pairs, worker={})
    assert judged(log, worker, 3) == {"g-0@0": pytest.approx([0.0, 1.0, 0.5])}
