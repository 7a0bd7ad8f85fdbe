"""The whole ring on real parts: two SGLang servers, Kafka, rewarders and a learner, of which several are killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from patience import HANG, until
from ringtools import answer_of, by_role, end_run, processes, start_run, verify
from runlog import messages, said, scraped, steps_of
from test_kafka_ring import options

from actors.sglang.keeper import Keeper
from actors.sglang.server import Server
from broker.kafka.server import KafkaServer
from broker.messages import Manifest, StepResult
from monitoring.scrape import scrape

pytestmark = [pytest.mark.kafka, pytest.mark.sglang]
STEPS = 30


def launched(run: object) -> list[psutil.Process]:
    """The servers' main processes below the supervisor; each has a scheduler and a detokenizer below it."""
    found = []
    for process in processes(run):  # type: ignore[arg-type]
        try:
            if "sglang.launch_server" in process.cmdline() and "--port" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def second(tiny_model: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that runs before the ring does, with weights of its own."""
    server = Server(
        tmp_path / "second", lambda: str(tiny_model), device="cpu", dtype="float32", slots=16, context=128, seed=1
    )
    keeper = Keeper(server)
    keeper.begin()
    yield server
    keeper.stop()


def newest_version(directory: Path, actor: str) -> int:
    """The newest version that ``actor`` has sampled from; -1 if it has not sampled yet."""
    return max(
        (t.newest_version for t in messages(directory, "trajectories") if getattr(t, "actor", "") == actor), default=-1
    )


def generated(directory: Path, actor: str) -> float:
    return scraped(directory, actor)["headrace_generated_tokens_total"]


def test_the_whole_ring_learns_on_sglang_and_kafka_whatever_dies(
    kafka: KafkaServer, second: Server, tmp_path: Path
) -> None:
    """One server is launched and killed, one joins on the way; the publisher and the learner are killed."""
    directory = tmp_path / "run"
    settings = options(
        "servers", kafka.url, "actors.engine=sglang", "actors.launch=true", "actors.count=1", "actors.slots=16",
        "stage.1.steps=100000", "stage.1.eval_every=15", "learner.optimizer.lr=2e-3", "learner.deadline=1200",
        "learner.group_size=8", "learner.push_timeout=20", "actors.give_back=8",
    )  # fmt: skip
    run, late = start_run(directory, *settings), None
    try:

        def until_step(number: int) -> None:
            until(lambda: run.poll() is not None or steps_of(directory) >= number, f"step {number}")
            assert run.poll() is None, said(directory)

        until_step(3)
        attached = ["--set", "actors.launch=false", "--set", f'actors.servers=["{second.url}"]']
        command = [sys.executable, "-m", "headrace", "actor", str(directory / "run.toml"), "--dir", str(directory)]
        with (tmp_path / "late.out").open("wb") as out:
            late = subprocess.Popen(
                [*command, "--name", "late", *attached], stdout=out, stderr=out, start_new_session=True
            )
        until(lambda: newest_version(directory, "late") >= 0, "samples of a server that came late")
        asked = [
            "--data", "heldout", "--rewarder", "vowels", "--questions", "4", "--k", "2", "--name", "beside", "--json",
        ]  # fmt: skip
        done = answer_of("eval", str(directory), *asked)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["questions"], found["k"]) == (4, 2) and 1 <= found["versions"][0] <= found["versions"][1]
        until_step(steps_of(directory) + 2)
        (server,) = launched(run)
        os.kill(server.pid, signal.SIGKILL)
        until_step(steps_of(directory) + 4)
        by_role(run, "publisher")[0].kill()
        until_step(steps_of(directory) + 4)
        before = generated(directory, "late")
        by_role(run, "learner")[0].kill()
        until(lambda: generated(directory, "late") > before, "tokens without a learner")
        found = json.loads((directory / "targets.json").read_text())
        (address,) = [t["targets"][0] for t in found if t["labels"]["daemon"] == "late.server-0"]
        numbers = scrape(address, 5.0)
        assert any(name.startswith("sglang:num_running_reqs") for name in numbers), (
            "its metrics are scraped beside ours"
        )
        killed = steps_of(directory)
        until_step(max(STEPS, killed + 4))
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(HANG) == 130, said(directory)
        late.terminate()
        assert late.wait(HANG) == 0, (tmp_path / "late.out").read_text()[-2000:]
    finally:
        end_run(run)
        if late is not None:
            end_run(late)
    audit = verify(directory)
    assert audit["problems"] == [] and audit["dropped"] == 0
    assert isinstance(audit["steps"], int) and audit["steps"] >= STEPS and audit["trained"] == 4 * audit["steps"]
    steps = messages(directory, "steps")
    rewards = [m.metrics["reward_mean"] for m in steps if isinstance(m, Manifest) and "reward_mean" in m.metrics]
    assert sum(rewards[-8:]) / 8 > sum(rewards[:8]) / 8 + 0.05, rewards
    results = [m for m in steps if isinstance(m, StepResult)]
    mismatch = [m.metrics["mismatch"] for m in results if "mismatch" in m.metrics]
    assert mismatch and max(mismatch) < 1e-4, "what the servers sampled from is what the learner computes"
    assert newest_version(directory, "late") > killed and newest_version(directory, "actor-0") > 1, "both took pushes"
    busy = [m.phases for m in results if m.stage == 1]
    blocked = sum(phases.get("publish", 0.0) for phases in busy)
    assert blocked <= 0.01 * sum(sum(phases.values()) for phases in busy), "the learner waits for no push"
