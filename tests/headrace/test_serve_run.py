"""A live run whose samples an agent program plays: it is trained on them, and whoever is killed meanwhile, nothing that was said is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from patience import HANG, until
from ringtools import by_role, start_run, verify

from broker.messages import Manifest, SessionEvent, Trajectory, Vote
from headrace.reading.records import scan
from headrace.running.rundir import reopen

HERE = Path(__file__).parent


@contextmanager
def door(directory: Path, port: int = 0) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "headrace", "serve", str(directory), "--port", str(port), "--patience", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("http://"), line
    return line.split("/v1")[0]


@pytest.mark.processes
@pytest.mark.slow
def test_an_agent_program_is_trained_on_and_kills_lose_nothing(tmp_path: Path) -> None:
    directory, told = tmp_path / "run", tmp_path / "agents.log"
    run = start_run(directory, file=HERE / "agents.toml")
    agents: list[subprocess.Popen[bytes]] = []
    games = lambda: len(told.read_text().splitlines()) if told.exists() else 0  # noqa: E731
    try:
        until(lambda: (directory / "run.toml").exists())
        with door(directory) as first:
            url = address(first)
            agents += [
                subprocess.Popen([sys.executable, str(HERE / "agent_program.py"), url, name, str(told)])
                for name in "ab"
            ]
            until(lambda: games() >= 6)
            for process in by_role(run, "actors"):
                process.send_signal(signal.SIGKILL)
            until(lambda: games() >= 12)
        with door(directory, int(url.rpartition(":")[2])) as second:  # the first one was killed
            assert address(second) == url
            until(lambda: games() >= 20)
            for process in by_role(run, "learner"):
                process.send_signal(signal.SIGKILL)
            until(lambda: run.poll() is not None)
            assert run.returncode == 0, (directory / "run.out").read_text()[-3000:]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
        if run.poll() is None:
            run.terminate()
            run.wait(HANG)
    audit = verify(directory)
    assert not audit["problems"] and audit["trained"] == 12
    with closing(reopen(directory).open_log()) as log:
        record = lambda topic, kind: [m for _, m in scan(log, f"duty.{topic}") if isinstance(m, kind)]  # noqa: E731
        played = {e.session: e for e in record("sessions", SessionEvent) if e.what == "reward"}
        rewarded = dict(line.split() for line in told.read_text().splitlines())
        assert rewarded.keys() <= played.keys(), "what an agent was told is kept is kept"
        assert all(played[name].data["value"] == float(worth) for name, worth in rewarded.items())
        samples = {t.id: t for t in record("trajectories", Trajectory)}
        voted = {f"{v.group_id}#{v.index}" for v in record("rewards", Vote)}
        steps = [m for m in record("steps", Manifest) if m.kind == "step"]
        trained = {f"{g.group_id}#{s[0]}" for m in steps for g in m.groups for s in g.samples}
        assert len(steps) == 6 and len(trained) == 48 and trained <= samples.keys() & voted
        assert all(t.session and t.environment == "agents" for t in samples.values())
        assert any(len(t.segments) == 4 for t in samples.values()), "two turns, one episode"
