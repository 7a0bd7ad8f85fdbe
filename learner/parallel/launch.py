"""Starts a pool on this machine: ``python -m learner.parallel.launch RANKS FILE ...`` is torchrun with one agent, on the loopback only.

The exit status is the learner's own (0, 2, 3 or 75) even where torchrun would return 1.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from broker.daemon import AWAY
from monitoring.daemon import PARENT, die_with_parent

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

STOPPED = 130
OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}
"""Exit statuses of a rank that was ended from outside."""
SAID = (2, 3)
"""Exit statuses that the learner explains itself: bad input, a fault."""


def main(argv: Sequence[str] | None = None) -> int:
    ranks, *rest = sys.argv[1:] if argv is None else argv
    die_with_parent()
    os.environ[PARENT] = str(os.getpid())  # the ranks die with this process
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the run file sets the number of threads of a rank
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # torch would serve the rendezvous to every network
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the learner's own message comes last
    with tempfile.NamedTemporaryFile(prefix="headrace-pool-") as meeting:
        options = [
            "--nnodes=1", f"--nproc-per-node={ranks}", "--max-restarts=0", "--local-addr=127.0.0.1", "--monitor-interval=0.1",
            "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting.name}", "--rdzv-conf=store_type=file", f"--rdzv-id={os.getpid()}",
        ]  # fmt: skip
        try:
            run.run(run.parse_args([*options, "-m", "learner", *rest]))
        except ChildFailedError as error:
            status = status_of(error.failures)
            if status not in SAID:
                print(f"fault: {told(error.failures)}", file=sys.stderr, flush=True)
            return status
        except SignalException:
            return STOPPED
    return 0


def status_of(failures: Mapping[int, ProcessFailure]) -> int:
    """One exit status for the failed ranks (``failures``, by rank): rank 0's own 2 or 3; else 1 if a rank failed by itself; else
    75, as ranks were only killed or lost the others."""
    leader = failures[0].exitcode if 0 in failures else 0
    if leader in SAID:
        return leader
    own = any(failure.exitcode not in OUTSIDE and failure.exitcode != AWAY for failure in failures.values())
    return 1 if own else AWAY


def told(failures: Mapping[int, ProcessFailure]) -> str:
    """A line that says which ranks have ended, and how."""
    ends = {
        rank: f"exit status {failure.exitcode}" if failure.exitcode >= 0 else signal.Signals(-failure.exitcode).name
        for rank, failure in sorted(failures.items())
    }
    return "the pool has ended: " + ", ".join(f"rank {rank} ({end})" for rank, end in ends.items())


if __name__ == "__main__":
    sys.exit(main())
