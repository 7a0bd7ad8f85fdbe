"""Measures what a whole sandbox uses: memory, processes, files. Resource limits apply to single processes only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from broker.sandbox.command import WRITABLE
from broker.sandbox.limits import Limits

PAGE = os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Watches the sandbox's first process, ``init``, and all below it. Not exact: each look is a snapshot."""

    def __init__(self, init: int, limits: Limits) -> None:
        self._init, self.limits = init, limits
        self.peak_mb = 0.0

    def look(self) -> tuple[str, str] | None:
        """The limit that is exceeded, as its cause and a description; None if there is none. Updates ``peak_mb``."""
        pids = list(self._pids())
        if len(pids) > self.limits.processes + 8:  # if the kernel does not limit them for this user
            return "processes", f"{len(pids)} processes"
        resident = sum(map(_resident, pids)) / (1 << 20)
        if resident > self.limits.memory_mb:  # a page that forks share was counted for each: measure exactly
            resident = sum(map(_proportional, pids)) / (1 << 20)
        self.peak_mb = max(self.peak_mb, resident)
        if resident > self.limits.memory_mb:
            return "memory", f"{resident:.0f} MiB of memory"
        for path in WRITABLE:
            with contextlib.suppress(OSError):
                there = os.statvfs(f"/proc/{self._init}/root{path}")
                if there.f_files - there.f_ffree > self.limits.files:
                    return "files", f"{there.f_files - there.f_ffree} files"
        return None

    def _pids(self) -> Iterator[int]:
        waiting = [self._init]
        while waiting:
            pid = waiting.pop()
            yield pid
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return 0


def _proportional(pid: int) -> int:
    """Resident bytes, with each shared page divided among the processes that share it."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return _resident(pid)
