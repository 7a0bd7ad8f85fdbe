"""A pool ends when a rank does: at once where it died, after the pool's time-out where it hangs."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patience import HANG
from pooltools import Ranks, executor, steps

from broker.daemon import AWAY
from learner.parallel.launch import status_of, told

pytestmark = [pytest.mark.processes, pytest.mark.slow]


def main(pool: Any, model: str, home: str, last: str) -> float:
    """Take steps up to ``last``."""
    made = executor(pool, model, home)
    made.start("pretrained")
    return steps(made, 1, int(last))["loss"]


@pytest.mark.parametrize("killed", [0, 2])
def test_all_end_within_seconds_when_one_is_killed(tiny_model: Path, tmp_path: Path, killed: int) -> None:
    """Also those who wait for nobody: rank 0 reads its stdin, the others wait for an order that may be hours away."""
    ranks = Ranks(3, timeout=3600.0)
    try:
        ranks.call(__file__, str(tiny_model), str(tmp_path), "1")
        ranks.processes[killed].send_signal(signal.SIGKILL)
        others = [process for rank, process in enumerate(ranks.processes) if rank != killed]
        assert [process.wait(HANG) for process in others] == [AWAY, AWAY]
        assert killed == 0 or "rank 2 of the pool is gone" in ranks.errors()
    finally:
        ranks.kill()


def test_a_rank_that_hangs_ends_the_pool_after_its_time_out(tiny_model: Path, tmp_path: Path) -> None:
    ranks = Ranks(2, timeout=10.0)
    try:
        ranks.call(__file__, str(tiny_model), str(tmp_path), "1")
        ranks.processes[1].send_signal(signal.SIGSTOP)
        ranks.send(__file__, str(tiny_model), str(tmp_path), "1")
        assert ranks.processes[0].wait(HANG) != 0
        assert "Timed out" in ranks.errors()
    finally:
        ranks.kill()


def failures(**ends: int) -> Any:
    return {int(rank[1:]): SimpleNamespace(exitcode=end) for rank, end in ends.items()}


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ({"r0": 2, "r1": 75}, 2),
        ({"r0": 3}, 3),
        ({"r1": -9}, AWAY),
        ({"r0": 75, "r1": -9}, AWAY),
        ({"r0": 75, "r1": 1}, 1),
        ({"r0": 1, "r1": 75}, 1),
        ({"r0": 75, "r2": -11}, 1),
        ({"r1": 2}, 1),
    ],
)
def test_the_pools_exit_status_says_whose_fault_it_was(ends: dict[str, int], status: int) -> None:
    assert status_of(failures(**ends)) == status


def test_the_last_words_name_every_rank_that_failed() -> None:
    assert told(failures(r1=-9, r0=75)) == "the pool has ended: rank 0 (exit status 75), rank 1 (SIGKILL)"
