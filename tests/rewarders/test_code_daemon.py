"""CodeTests as a run uses it: in judging processes of a worker, and as a daemon that refuses while its sandbox fails."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from patience import HANG, until
from prometheus_client import CollectorRegistry
from runlog import scraped
from test_code import ADD, SUMS, fenced
from test_math import sample

from broker.messages import Vote, encode
from broker.open import open_log
from broker.run import Run
from broker.sandbox import SandboxError
from broker.sandbox.command import INSTALL, Place
from broker.sandbox.selftest import Held
from broker.topics import Topics
from headrace.doctor import machine
from headrace.reading.records import scan
from monitoring.metrics import BrokerMetrics, RewarderMetrics, SystemMetrics
from rewarders.config import RewarderTable
from rewarders.worker import RewarderWorker

ROOT = Path(__file__).resolve().parents[2]
COMPILED = "#include <iostream>\nint main() { long long a, b; std::cin >> a >> b; std::cout << a + b; }"
TAKEN: list[tuple[str, dict[str, Any], tuple[str, float | None, str]]] = [
    (fenced(ADD), {"tests": SUMS}, ("value", 1.0, "")),
    (fenced("print(3)"), {"tests": SUMS}, ("value", 0.0, "")),
    (fenced("while True: pass"), {"tests": SUMS, "time_limit": 0.3}, ("value", 0.0, "timeout")),
    (fenced("import os\nos.abort()"), {"tests": SUMS}, ("value", 0.0, "killed")),
    (fenced(COMPILED, "cpp"), {"tests": SUMS, "language": "cpp"}, ("value", 1.0, "")),
    (fenced(ADD), {}, ("abstain", None, "")),
    (fenced(ADD), {"tests": [{"input": 5}]}, ("error", None, "error")),
]


@pytest.mark.slow
def test_votes_tell_wrong_answers_bounds_and_faults_of_the_judge_apart(tmp_path: Path) -> None:
    log, topics, registry = open_log(f"sqlite://{tmp_path}/log"), Topics("t", partitions=1), CollectorRegistry()
    log.create(topics.specs())
    producer = log.producer()
    for place, (text, metadata, _) in enumerate(TAKEN):
        record = replace(sample(text, None, metadata=metadata), group_id=f"g-{place}@0", rewards={"code": 1.0})
        producer.send(topics.trajectories, b"key", encode(record))
    producer.flush()
    table = RewarderTable.model_validate(
        {"use": "rewarders.code:CodeTests", "total": 50.0, "compile_seconds": 40.0, "worker": {"timeout": 60.0}}
    )
    metrics: tuple[Any, ...] = (RewarderMetrics(registry, "code"), BrokerMetrics(registry), SystemMetrics(registry, "rewarder"))  # fmt: skip
    worker = RewarderWorker("code-0", "code", log, topics, table, tmp_path, *metrics)

    def judged() -> bool:
        worker.round()
        return sum(log.committed(topics.group("rewarder.code"), topics.trajectories).values()) == len(TAKEN)

    until(judged, "all verdicts")
    worker.close()
    votes = {v.group_id: v for _, v in scan(log, topics.rewards) if isinstance(v, Vote)}
    for place, (_, _, expected) in enumerate(TAKEN):
        vote = votes[f"g-{place}@0"]
        assert (vote.outcome, vote.value, vote.cause) == expected, vote
    assert votes["g-0@0"].answer == votes["g-0@0"].answer != ""
    log.close()


@pytest.mark.long
def test_a_daemon_whose_sandbox_fails_takes_nothing_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "shaky.py").write_text(
        "from broker.sandbox import SandboxError\nclass Shaky:\n    def __call__(self, sample): return 1.0\n"
        "    def prepare(self): raise SandboxError('the sandbox fails its self-test: network: it got through')\n"
    )
    (tmp_path / "run.toml").write_text(
        "[run]\nname = 'x'\nmodel = 'm'\n[rewarders.code]\nuse = 'shaky.py:Shaky'\n[data]\np = 'x'\n"
    )
    home = tmp_path / "run"
    run = Run.open(tmp_path / "run.toml", [], home)
    log = run.open_log()
    log.create(run.topics.specs())
    producer = log.producer()
    producer.send(run.topics.trajectories, b"key", encode(replace(sample("x"), rewards={"code": 1.0})))
    producer.flush()
    command = [sys.executable, "-m", "rewarders", str(tmp_path / "run.toml"), "--dir", str(home), "--rewarder", "code"]
    daemon = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    try:
        assert daemon.stderr is not None
        assert b"takes no samples: the sandbox fails its self-test: network: it got through" in daemon.stderr.readline()
        assert scraped(home, "code-0")["headrace_sandbox_degraded{rewarder=code}"] == 1.0
        assert not log.committed(run.topics.group("rewarder.code"), run.topics.trajectories)
        assert not list(scan(log, run.topics.rewards))
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(HANG) == 0, "it can be stopped while it waits"
        daemon.stderr.close()  # type: ignore[union-attr]
        producer.close()
        log.close()


@pytest.mark.long
def test_the_doctor_tries_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    check = machine.sandbox()
    assert check.ok and check.found == "20 of 20 programs of the self-test held"
    monkeypatch.setattr("broker.sandbox.selftest.self_test", lambda: [Held("network", "it got through", 0.1)])
    check = machine.sandbox()
    assert not check.ok and "0 of 1" in check.found and "network: it got through" in check.found

    def absent() -> Place:
        raise SandboxError(f"there is no bwrap on this machine: {INSTALL}")

    monkeypatch.setattr("broker.sandbox.command.place", absent)
    check = machine.sandbox()
    assert check.ok and "apt install bubblewrap" in check.found and "only rewards of code" in check.found
