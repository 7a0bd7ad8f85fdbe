"""The whole ring on real parts: two SGLang servers, Kafka, rewarders and a learner; one server is killed on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from ringtools import end_run, processes, start_run, verify, wait_for
from test_kafka_ring import options, said, steps_of

from broker.kafka.server import KafkaServer
from broker.messages import Manifest, StepResult
from headrace.records import scan
from headrace.rundir import reopen

pytestmark = [pytest.mark.kafka, pytest.mark.sglang, pytest.mark.timeout(600)]
STEPS = 30


def servers(run: object) -> list[psutil.Process]:
    """The servers' main processes; each has a scheduler and a detokenizer below it."""
    found = []
    for process in processes(run):  # type: ignore[arg-type]
        try:
            if "sglang.launch_server" in process.cmdline() and "--port" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_the_whole_ring_learns_on_sglang_and_kafka_and_survives_a_server(kafka: KafkaServer, tmp_path: Path) -> None:
    settings = options(
        "servers", kafka.url, "actors.engine=sglang", "actors.launch=true", "actors.count=2", "actors.slots=16",
        f"stage.1.steps={STEPS}", "stage.1.eval_every=15", "learner.optimizer.lr=2e-3", "learner.deadline=240",
        "learner.group_size=8", "learner.push_timeout=20", "actors.give_back=8",
    )  # fmt: skip
    run = start_run(tmp_path, *settings)
    try:
        wait_for("the third step", lambda: run.poll() is not None or steps_of(tmp_path) >= 3, 300)
        found = servers(run)
        assert len(found) == 2, said(tmp_path)
        os.kill(found[0].pid, signal.SIGKILL)
        assert run.wait(400) == 0, said(tmp_path)
    finally:
        end_run(run)
    audit = verify(tmp_path)
    assert (audit["steps"], audit["trained"], audit["outstanding"], audit["dropped"]) == (STEPS, 4 * STEPS, 0, 0)
    opened = reopen(tmp_path)
    log = opened.open_log()
    records = [m for _, m in scan(log, opened.topics.steps)]
    log.close()
    rewards = [m.metrics["reward_mean"] for m in records if isinstance(m, Manifest) and "reward_mean" in m.metrics]
    assert sum(rewards[-8:]) / 8 > sum(rewards[:8]) / 8 + 0.05, rewards
    mismatch = [m.metrics["mismatch"] for m in records if isinstance(m, StepResult) and "mismatch" in m.metrics]
    assert mismatch and max(mismatch) < 1e-4, "what the servers sampled from is what the learner computes"
