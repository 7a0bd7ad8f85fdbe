"""Pools for tests: real processes on the loopback. Rank 0 works through cases, the others are what they are in a run.

``python -m pooltools`` with torchrun's environment is one rank.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from samples import groups_of

from broker.messages import GroupRef, Manifest, Position, SampleRef
from broker.runfile import RunFile
from learner.__main__ import LOST_SECONDS
from learner.config import LearnerConfig
from monitoring.ports import free_ports

HERE = Path(__file__).resolve().parent
SECONDS = 60.0
NAMED = (GroupRef("d-0@0", Position(0, 0), (SampleRef(0, Position(0, 0), ()), SampleRef(1, Position(0, 1), ()))),)
"""A manifest names what it trains; here the samples are given beside it."""


class Ranks:
    """A pool of real processes. Rank 0 waits on its stdin for calls: a test module, whose ``main(pool, *arguments)`` it makes."""

    def __init__(self, world: int, device: str = "cpu", timeout: float = 60.0) -> None:
        place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
        path = f"{HERE}:{HERE.parent}:{os.environ.get('PYTHONPATH', '')}"
        self.processes: list[subprocess.Popen[str]] = []
        self._errors = [tempfile.TemporaryFile("w+") for _ in range(world)]  # noqa: SIM115
        for rank in range(world):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "pooltools", device, str(timeout)]
            errors, pipe = self._errors[rank], subprocess.PIPE
            process = subprocess.Popen(
                command, env={**os.environ, **place, **own}, stdin=pipe, stdout=pipe, stderr=errors, text=True
            )
            self.processes.append(process)

    def call(self, module: str, *arguments: str) -> Any:
        """What ``main`` of the module at path ``module`` returned on rank 0, through JSON."""
        self.send(module, *arguments)
        said = self.processes[0].stdout
        assert said is not None
        line = said.readline()
        assert line, self.errors()
        return json.loads(line)

    def send(self, module: str, *arguments: str) -> None:
        """Have rank 0 make a call, without waiting for it."""
        asked = self.processes[0].stdin
        assert asked is not None
        asked.write(json.dumps([module, *arguments]) + "\n")
        asked.flush()

    def errors(self) -> str:
        """The last words of all ranks."""
        time.sleep(1.0)  # the first to go is noticed before all have spoken
        for file in self._errors:
            file.seek(0)
        return "\n".join(file.read()[-3000:] for file in self._errors)

    def end(self) -> list[int]:
        """Let rank 0 end the pool; returns the exit statuses."""
        for process in self.processes:
            process.stdin.close()  # type: ignore[union-attr]
        try:
            return [process.wait(SECONDS) for process in self.processes]
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


def rank_main() -> None:
    from learner.parallel.follower import follow
    from learner.parallel.group import join
    from learner.parallel.place import Place

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place = Place(rank, world, rank, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), False)
    if place.rank:
        follow(join(place))
        os._exit(0)
    pool = join(place, sys.argv[1], float(sys.argv[2]))
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        module, *arguments = json.loads(line)
        sys.path.insert(0, str(Path(module).parent))
        print(json.dumps(importlib.import_module(Path(module).stem).main(pool, *arguments)), file=out, flush=True)
    pool.end()
    os._exit(0)


if __name__ == "__main__":
    try:
        rank_main()
    except BaseException:
        traceback.print_exc()
        time.sleep(LOST_SECONDS)
    os._exit(1)  # a pool that broke would keep the interpreter waiting
