"""SIGKILL at random moments to random daemons: the run finishes, nothing is lost, nothing is trained twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ringtools import end_run, kill_one_of, start_run, verify
from runlog import said

ROLES = ("learner", "publisher", "actors", "rewarders", "judge", "supervisor")
KILLS = int(os.environ.get("HEADRACE_KILLS") or 6)
SEED = int(os.environ.get("HEADRACE_SEED") or 0) or random.randrange(1, 10**6)


@pytest.mark.chaos
@pytest.mark.timeout(120 + 25 * KILLS)
def test_a_run_survives_sigkill_of_anything(tmp_path: Path) -> None:
    print(f"\nchaos: {KILLS} kills, seed {SEED} (again: HEADRACE_SEED={SEED})")
    rng = random.Random(SEED)
    steps = f"stage.1.steps={max(30, 6 * KILLS)}"
    run = start_run(tmp_path, "--set", steps)
    try:
        killed = 0
        deadline = time.monotonic() + 100 + 22 * KILLS
        while run.poll() is None or run.returncode == -signal.SIGKILL:
            if run.poll() is not None:  # the supervisor was killed: the same command resumes
                run = start_run(tmp_path, "--set", steps)
            assert time.monotonic() < deadline, said(tmp_path)
            time.sleep(rng.uniform(1.0, 7.0) if killed < KILLS else 0.5)
            if killed < KILLS and run.poll() is None:
                killed += kill_one(run.pid, rng.choice(ROLES), run, rng)
        assert run.returncode == 0, said(tmp_path)
        assert killed > 0
    finally:
        end_run(run)
    audit = verify(tmp_path)
    assert audit["problems"] == [] and audit["outstanding"] == 0
    assert audit["steps"] == max(30, 6 * KILLS)
    assert audit["samples_trained"] == 16 * int(str(audit["steps"]))


def kill_one(supervisor: int, role: str, run: subprocess.Popen[bytes], rng: random.Random) -> bool:
    """SIGKILL one process of ``role``; False if there is none at the moment."""
    if role == "supervisor":
        os.kill(supervisor, signal.SIGKILL)
        time.sleep(0.5)
    elif not kill_one_of(run, role, rng):
        return False
    print(f"  killed {role}", flush=True)
    return True
