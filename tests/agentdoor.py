"""A small run for agents: a real log, engine and actor in this process, ``headrace serve`` as a process of its own, and agents over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from patience import HANG
from prometheus_client import CollectorRegistry

from actors.config import ActorsTable, environment_tables
from actors.intake import Intake
from actors.local.engine import LocalEngine
from actors.rooms import Rooms
from actors.worker import ActorWorker
from broker.messages import (
    ChatMessage,
    DeadLetter,
    Dropped,
    Manifest,
    Prompt,
    Sampling,
    SessionEvent,
    Trajectory,
    Vote,
    encode,
)
from broker.run import Run
from broker.sessions import OPEN
from headrace.reading.records import scan
from headrace.running.rundir import record
from monitoring.metrics import ActorMetrics, BrokerMetrics, SystemMetrics

RUN = """
[run]
name = "duty"
model = "{model}"
rewards = {{ agent = 1.0 }}

[data]
prompts = {{ use = "learner.data.agents:OpenTasks", environment = "agents" }}

[environments.agents]
use = "actors.agents:Agents"
{options}

[rewarders.agent]
external = true

[learner]
group_size = 2
sampling = {{ max_new_tokens = 60, max_turns = 6 }}

[[stage]]
kind = "rl"
steps = 2
"""
STOPS = tuple("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
"""So that the random model ends its replies."""


class House:
    """``engine`` is shared by the actors of a test module; ``options`` are lines of the environment's table."""

    def __init__(self, directory: Path, model: Path, engine: LocalEngine, options: str = "", *arguments: str) -> None:
        (directory / "run").mkdir(parents=True)
        file = directory / "agents.toml"
        file.write_text(RUN.format(model=model, options=options))
        self.directory, self.engine, self._arguments = directory / "run", engine, arguments
        self.engine_path = model
        self.run = Run.open(file, [], self.directory)
        record(self.run)
        self.log = self.run.open_log()
        self.url, self._door = "", None
        self._stop, self._thread = threading.Event(), None
        self.worker: ActorWorker | None = None

    # -- who serves ----------------------------------------------------------------------------------------------------

    def start_door(self, port: int = 0) -> str:
        command = [
            sys.executable,
            "-m",
            "headrace",
            "serve",
            str(self.directory),
            "--port",
            str(port),
            *self._arguments,
        ]
        self._door = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self._door.stdout is not None
        line = self._door.stdout.readline()
        assert line.startswith("http://"), line + self._door.stdout.read()
        self.url = line.split("/v1")[0]
        return self.url

    def kill_door(self) -> int:
        """SIGKILL; returns the port, for the next one."""
        assert self._door is not None
        self._door.kill()
        self._door.wait()
        self._door.stdout.close()
        return int(self.url.rpartition(":")[2])

    def start_actor(self, name: str = "a") -> None:
        registry = CollectorRegistry()
        metrics: tuple[Any, ...] = (ActorMetrics(registry), BrokerMetrics(registry), SystemMetrics(registry, "actor"))
        rooms = Rooms(environment_tables(self.run.file), self.run.file.base, self.directory, name)
        worker = ActorWorker(
            name, Intake(name, self.log, self.run.topics), self.engine, rooms, ActorsTable(slots=8), *metrics
        )
        stop = threading.Event()

        def pump() -> None:
            while not stop.is_set():
                worker.round()

        self.worker, self._rooms, self._stop = worker, rooms, stop
        self._thread = threading.Thread(target=pump, daemon=True)
        self._thread.start()

    def kill_actor(self) -> None:
        """Drop the actor where it stands: nothing more is published or committed."""
        self._stop.set()
        assert self._thread is not None and self.worker is not None
        self._thread.join()
        for group in {group for group, _ in self.worker._places.values()}:
            self.engine.cancel(group)
        self._rooms.close()
        self._thread = None

    def close(self) -> None:
        if self._thread is not None:
            self.kill_actor()
        if self._door is not None and self._door.poll() is None:
            self._door.terminate()
            assert self._door.wait(HANG) == 0
            self._door.stdout.close()
        self.log.close()

    # -- the learner's part --------------------------------------------------------------------------------------------

    def feed(self, *names: str, size: int = 2, kind: str = OPEN, **options: Any) -> None:
        producer = self.log.producer()
        for number, name in enumerate(names):
            sampling = Sampling(**{"max_new_tokens": 60, "max_turns": 6, "stop": STOPS, **options})
            prompt = Prompt(
                f"{name}@0", (ChatMessage("user", f"Play {name}"),), size, answer=name, kind=kind, rewards={"agent": 1.0}, sampling=sampling,
                environment="agents", number=number, created=time.time() + number,
            )  # fmt: skip
            producer.send(self.run.topics.prompts, prompt.group_id.encode(), encode(prompt))
        producer.flush()
        producer.close()

    def drop(self, group: str) -> None:
        producer = self.log.producer()
        manifest = Manifest(0, 0, "close", dropped=(Dropped(group, "incomplete", 0),), created=time.time())
        producer.send(self.run.topics.steps, b"0", encode(manifest))
        producer.flush()
        producer.close()

    # -- what the log says ---------------------------------------------------------------------------------------------

    def records(self, topic: str, kind: type) -> list[Any]:
        return [m for _, m in scan(self.log, f"{self.run.topics.run}.{topic}") if isinstance(m, kind)]

    def samples(self) -> dict[str, Trajectory]:
        found: dict[str, Trajectory] = {}
        for m in self.records("trajectories", Trajectory):
            assert found.setdefault(m.id, m).tokens.tolist() == m.tokens.tolist(), "what comes twice is the same"
        return found

    def votes(self) -> list[Vote]:
        return self.records("rewards", Vote)

    def letters(self) -> list[DeadLetter]:
        return self.records("deadletters", DeadLetter)

    def events(self, what: str) -> list[SessionEvent]:
        return [e for e in self.records("sessions", SessionEvent) if e.what == what]

    # -- agents --------------------------------------------------------------------------------------------------------

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        return httpx.post(f"{self.url}{path}", content=content, timeout=HANG, **options)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=HANG)

    def chat(self, messages: list[dict[str, Any]], session: str = "", **fields: Any) -> httpx.Response:
        body = {"model": "duty", "messages": messages, **fields}
        return self.post("/v1/chat/completions", body, headers={"X-Headrace-Session": session} if session else {})


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@contextmanager
def house(*arguments: Any) -> Iterator[House]:
    made = House(*arguments)
    try:
        yield made
    finally:
        made.close()
