"""Pools for tests: real processes on the loopback. Rank 0 works through cases, the others are what they are in a run.

``python -m pooltools`` with torchrun's environment is one rank.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samples import groups_of

from broker.messages import GroupRef, Manifest, Position, SampleRef
from broker.runfile import RunFile
from learner.config import LearnerConfig
from monitoring.ports import free_ports

HERE = Path(__file__).resolve().parent
SECONDS = 110.0
NAMED = (GroupRef("d-0@0", Position(0, 0), (SampleRef(0, Position(0, 0), ()), SampleRef(1, Position(0, 1), ()))),)
"""A manifest names what it trains; here the samples are given beside it."""
SETTLED = {"lr": 1e-3}
"""With a tiny eps Adam turns the rounding of a gradient near 0 into a step of full size."""


def start_pool(world: int, module: str, *arguments: str, device: str = "cpu") -> list[subprocess.Popen[str]]:
    """The ranks of a pool; rank 0 calls ``main(pool, *arguments)`` of the test module ``module`` (a path)."""
    place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    path = f"{HERE}:{HERE.parent}:{os.environ.get('PYTHONPATH', '')}"
    out = []
    for rank in range(world):
        environment = {**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path}
        command = [sys.executable, "-m", "pooltools", device, module, *arguments]
        out.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    return out


def in_pool(world: int, module: str, *arguments: str, device: str = "cpu") -> Any:
    """What rank 0 of a pool returned, through JSON."""
    ranks = start_pool(world, module, *arguments, device=device)
    try:
        said = [rank.communicate(timeout=SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(errors[-3000:] for _, errors in said)
    return json.loads(said[0][0].splitlines()[-1])


def executor(plan: Any, model: str, directory: str, **learner: Any) -> Any:
    """An executor with one RL stage, and ``[learner]`` as given."""
    from learner.executor import Executor

    tables = {"learner": {"pack_tokens": 128, "device": "cpu", "optimizer": SETTLED, **learner}}
    tables["stage"] = [{"kind": "rl", "steps": 10}]  # type: ignore[assignment]
    config = LearnerConfig(RunFile(tables, Path(directory), Path(directory) / "run.toml"))
    made = Executor(config, model, 0, Path(directory), plan)
    return made


def steps(made: Any, first: int, last: int, groups: int = 4) -> dict[str, float]:
    """Execute the manifests of steps ``first`` to ``last``; returns the metrics of the last."""
    metrics: dict[str, float] = {}
    for step in range(first, last + 1):
        judged = tuple(tuple(group) for group in groups_of(groups, step))
        metrics = made.execute(Manifest(step, 0, "step", NAMED), judged, step).metrics
    return metrics


def rank_main() -> None:
    from learner.parallel.follower import follow
    from learner.parallel.group import join
    from learner.parallel.place import find_place

    device, module, *arguments = sys.argv[1:]
    place = find_place()
    assert place is not None
    if place.rank:
        follow(join(place))
        return
    pool = join(place, device, 60.0)
    sys.path.insert(0, str(Path(module).parent))
    main: Callable[..., Any] = importlib.import_module(Path(module).stem).main
    result = main(pool, *arguments)
    pool.end()
    print(json.dumps(result))


if __name__ == "__main__":
    rank_main()
