"""A whole ring that agents play: the learner trains on their sessions, is killed, and goes on; the audit finds nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from patience import HANG
from ring import ring

from broker.messages import SessionEvent, Trajectory
from headrace.reading.records import scan

FILE = Path(__file__).with_name("agents.toml")
SHORT = (
    "stage.0.steps=4",
    "stage.1.steps=3",
    "stage.1.eval_every=0",
    "learner.group_size=2",
    "learner.sampling.stop=['1','2','3']",
)


def play(url: str, name: str, stop: threading.Event) -> None:
    """An agent that plays two turns a session, over and over; whoever is away comes back."""
    number = 0
    while not stop.is_set():
        number += 1
        session = f"{name}-{number}"
        talk = [{"role": "user", "content": "Guess: 0 to 9"}]
        for _ in range(2):
            body = {"model": "duty", "messages": talk}
            answer = ask(f"{url}/sessions/{session}/v1/chat/completions", body, stop)
            if answer is None or answer["choices"][0]["finish_reason"] != "stop":
                break
            talk += [answer["choices"][0]["message"], {"role": "user", "content": "5 to 9"}]
        ask(f"{url}/v1/headrace/sessions/{session}/reward", {"reward": float(number % 2)}, stop)


def ask(url: str, body: object, stop: threading.Event) -> dict[str, object] | None:
    while not stop.is_set():
        try:
            answer = httpx.post(url, json=body, timeout=HANG)
        except httpx.TransportError:
            continue
        if answer.status_code == 200:
            found: dict[str, object] = answer.json()
            return found
        if answer.status_code != 503:
            return None
    return None


@pytest.mark.processes
def test_a_learner_trains_on_the_sessions_of_agents_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    with ring(tmp_path / "run", *SHORT, file=FILE) as made:
        command = [sys.executable, "-m", "headrace", "serve", str(made.directory), "--port", "0", "--patience", "1"]
        door = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        stop = threading.Event()
        agents: list[threading.Thread] = []
        try:
            assert door.stdout is not None
            url = door.stdout.readline().split("/v1")[0]
            agents += [threading.Thread(target=play, args=(url, name, stop), daemon=True) for name in "ab"]
            for agent in agents:
                agent.start()
            made.kill_at(3)
            made.killed()
            assert made.run()
        finally:
            stop.set()
            door.terminate()
            assert door.wait(HANG) == 0
            door.stdout.close()  # type: ignore[union-attr]
            for agent in agents:
                agent.join(HANG)
        audit = made.verify()
        assert audit.problems == [] and (audit.steps, audit.trained, audit.outstanding) == (3, 6, 0)
        samples = {m.id: m for m in made.records("trajectories", Trajectory)}
        log = made.run_of.open_log()
        events = [m for _, m in scan(log, "duty.sessions") if isinstance(m, SessionEvent)]
        log.close()
        trained = {f"{g.group_id}#{s[0]}" for m in made.steps() for g in m.groups for s in g.samples}
        assert len(trained) == 12 and trained <= samples.keys()
        for identity in trained:
            sample = samples[identity]
            name, _, part = sample.session.partition("#")
            turns = [e.data for e in events if e.what == "turn" and e.session == name]
            told = b"".join(d["turn"]["tokens"] for d in turns if d["part"] == int(part or 1) - 1)
            assert told == sample.tokens.astype("<i4").tobytes(), "what the agent was told is what is trained"
        assert any(len(samples[i].segments) == 4 for i in trained), "of two turns"
