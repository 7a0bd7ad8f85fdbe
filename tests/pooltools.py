"""Pools for tests: real processes on the loopback. Rank 0 works through cases, the others are what they are in a run."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from forked import Forked
from patience import HANG
from samples import groups_of

from broker.messages import GroupRef, Manifest, Position, SampleRef
from broker.runfile import RunFile
from learner.__main__ import LOST_SECONDS
from learner.config import LearnerConfig
from monitoring.ports import free_ports

LOADED = ("learner.parallel.follower", "learner.parallel.group", "learner.training.executor", "learner.training.state")
NAMED = (GroupRef("d-0@0", Position(0, 0), (SampleRef(0, Position(0, 0), ()), SampleRef(1, Position(0, 1), ()))),)
"""A manifest names what it trains; here the samples are given beside it."""


class Ranks:
    """A pool of real processes. Rank 0 waits for calls: a test module, whose ``main(pool, *arguments)`` it makes."""

    def __init__(self, world: int, device: str = "cpu", timeout: float = HANG) -> None:
        port = free_ports(1)[0]
        self._calls, theirs = multiprocessing.Pipe()
        self._errors = [tempfile.NamedTemporaryFile("w+") for _ in range(world)]  # noqa: SIM115
        self.processes = [
            Forked(
                rank_main,
                (rank, world, port, device, timeout, self._errors[rank].name, None if rank else theirs),
                LOADED,
            )
            for rank in range(world)
        ]
        theirs.close()

    def call(self, module: str, *arguments: str) -> Any:
        """What ``main`` of the module at path ``module`` returned on rank 0, through JSON."""
        self.send(module, *arguments)
        try:
            return json.loads(self._calls.recv_bytes())
        except (EOFError, ConnectionError):
            raise AssertionError(self.errors()) from None

    def send(self, module: str, *arguments: str) -> None:
        """Have rank 0 make a call, without waiting for it."""
        self._calls.send_bytes(json.dumps([module, *arguments]).encode())

    def errors(self) -> str:
        """The last words of all ranks."""
        time.sleep(1.0)  # the first to go is noticed before all have spoken
        for file in self._errors:
            file.seek(0)
        return "\n".join(file.read()[-3000:] for file in self._errors)

    def end(self) -> list[int]:
        """Let rank 0 end the pool; returns the exit statuses."""
        self._calls.close()
        try:
            return [process.wait(HANG) for process in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def executor(plan: Any, model: str, directory: str, **learner: Any) -> Any:
    """An executor with one RL stage, and ``[learner]`` as given."""
    from learner.training.state import LearnerState

    tables = {"learner": {"pack_tokens": 128, "device": plan.device or "cpu", "optimizer": {"lr": 1e-3}, **learner}}
    tables["stage"] = [{"kind": "rl", "steps": 10}]  # type: ignore[assignment]
    config = LearnerConfig(RunFile(tables, Path(directory), Path(directory) / "run.toml"))
    made = LearnerState(config, model, 0, Path(directory), plan)
    return made


def steps(made: Any, first: int, last: int, groups: int = 4) -> dict[str, float]:
    """Execute the manifests of steps ``first`` to ``last``; returns the metrics of the last."""
    from learner.training.executor import execute

    metrics: dict[str, float] = {}
    for step in range(first, last + 1):
        judged = tuple(tuple(group) for group in groups_of(groups, step))
        metrics = execute(made, Manifest(step, 0, "step", NAMED), judged, step).metrics
    return metrics


def rank_main(
    rank: int, world: int, port: int, device: str, timeout: float, errors: str, calls: Connection | None
) -> None:
    """One rank, from its fork to its end."""
    file = os.open(errors, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, sys.stderr.fileno())
    os.dup2(file, sys.stdout.fileno())
    try:
        take_part(rank, world, port, device, timeout, calls)
    except BaseException:
        traceback.print_exc()
        time.sleep(LOST_SECONDS)
    os._exit(1)  # a pool that broke would keep the interpreter waiting


def take_part(rank: int, world: int, port: int, device: str, timeout: float, calls: Connection | None) -> None:
    from learner.parallel.follower import follow
    from learner.parallel.group import join
    from learner.parallel.place import Place

    place = Place(rank, world, rank, "127.0.0.1", port, False)
    if calls is None:
        follow(join(place))
        os._exit(0)
    pool = join(place, device, timeout)
    while True:
        try:
            module, *arguments = json.loads(calls.recv_bytes())
        except EOFError:
            break
        sys.path.insert(0, str(Path(module).parent))
        calls.send_bytes(json.dumps(importlib.import_module(Path(module).stem).main(pool, *arguments)).encode())
    pool.end()
    os._exit(0)
