"""SIGKILL of random daemons, aimed at what happens: the run finishes, nothing is lost, nothing is trained twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import HANG
from ringtools import end_run, kill, start_run, verify
from runlog import messages, said, steps_of

from broker.messages import PolicyVersion, Trajectory

ROLES = ("learner", "publisher", "actors", "rewarders", "judge", "supervisor")
KILLS = int(os.environ.get("HEADRACE_KILLS") or 8)
SEED = int(os.environ.get("HEADRACE_SEED") or 0) or random.randrange(1, 10**6)


def policies(home: Path) -> int:
    return max((m.version for m in messages(home, "policy") if isinstance(m, PolicyVersion)), default=-1)


def samples(home: Path) -> int:
    return sum(isinstance(m, Trajectory) for m in messages(home, "trajectories"))


def checkpoints(home: Path) -> str:
    return max((p.name for p in (home / "checkpoints").glob("step-*")), default="")


EVENTS: dict[str, Callable[[Path], object]] = {
    "a step": steps_of, "a push": policies, "a sample": samples, "a checkpoint": checkpoints,
}  # fmt: skip
"""What a kill follows: as soon as the value is another."""


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1800 + 25 * KILLS)
def test_a_run_survives_sigkill_of_anything(tmp_path: Path) -> None:
    """Each process is killed right behind an event, so that kills fall into the pushes, saves and steps that they are to break."""
    print(f"\nchaos: {KILLS} kills, seed {SEED} (again: HEADRACE_SEED={SEED})")
    rng = random.Random(SEED)
    victims = [ROLES[i % len(ROLES)] for i in range(KILLS)]
    rng.shuffle(victims)
    endless = (
        "--set",
        "stage.1.steps=100000",
        "--set",
        "learner.optimizer.schedule=constant",
        "--set",
        "stage.0.steps=2",
    )
    run = start_run(tmp_path, *endless)
    try:
        for victim in victims:
            event = rng.choice(list(EVENTS))
            wait_for_another(event, tmp_path, run)
            run = kill(victim, run, rng, tmp_path, endless)
            print(f"  killed {victim} behind {event}", flush=True)
        wait_for_another("a step", tmp_path, run)
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(HANG) == 130, said(tmp_path)
        steps = steps_of(tmp_path) + 4
        run = start_run(tmp_path, *endless, "--set", f"stage.1.steps={steps}")
        assert run.wait(HANG) == 0, said(tmp_path)
    finally:
        end_run(run)
    audit = verify(tmp_path)
    assert audit["problems"] == [] and audit["outstanding"] == 0
    assert audit["steps"] == steps and audit["samples_trained"] == 16 * steps


def wait_for_another(event: str, home: Path, run: subprocess.Popen[bytes]) -> None:
    """Until ``event`` has happened once more."""
    seen, deadline = EVENTS[event](home), time.monotonic() + HANG
    while EVENTS[event](home) == seen:
        assert run.poll() is None and time.monotonic() < deadline, f"no other {event}: {said(home)}"
        time.sleep(0.02)
