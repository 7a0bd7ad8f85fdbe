"""CPU seconds of variants in turn, and the memory that one call of a fresh process adds."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

MIB = 1 << 20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cpu_medians(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds (all threads) of each, taken in turn, so that what else the machine does falls on all alike. Each has run before."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, work in variants.items():
            gc.collect()
            start = time.process_time()
            work()
            seconds[name].append(time.process_time() - start)
    return {name: median(values) for name, values in seconds.items()}


def added_mib(work: Callable[[], object]) -> float:
    """MiB by which the process's high-water mark during ``work`` is above what it held before. Linux only."""
    gc.collect()
    CLEAR.write_text("5")  # the high-water mark begins anew
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """KiB."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(name))


def in_fresh_process(*arguments: str) -> float:
    """The number that this benchmark prints when it is started with these arguments."""
    script = Path(__file__).resolve().parent.parent / "bench_learner.py"
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])
