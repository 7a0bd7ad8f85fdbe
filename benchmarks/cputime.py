"""How much CPU a call takes."""

from __future__ import annotations

import time
from collections.abc import Callable


def cpu(work: Callable[[], object], times: int) -> float:
    """Least CPU microseconds of one call, over five rounds."""
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(times):
            work()
        best = min(best, (time.process_time() - start) / times)
    return best * 1e6
