"""Waits for records without polling: a process that has committed writes a byte to the topic's lock file, and inotify
reports it.

The byte is written after the commit, so that what it announces can be read. A process killed between the two announces
nothing, so waiting readers also look every LOOK_SECONDS. If the kernel has no inotify instance left, they wait by naps
of growing length.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from inotify_simple import INotify, flags

from broker.log import Record

LOOK_SECONDS = 1.0  # longest time between two reads of the log
NAP_SECONDS = (0.0005, 0.02)  # shortest and longest nap without inotify
log = logging.getLogger("log")


def announce(lock: int) -> None:
    """Tell the processes that watch the open lock file of a commit. Errors are ignored, such as a full disk: readers
    look in any case."""
    with contextlib.suppress(OSError):
        os.pwrite(lock, b"\n", 0)


class Arrivals:
    """Waits for a write to one of the lock files ``paths``. Opened at the first wait, as most readers never wait."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._watch: INotify | None = None
        self._poll = select.poll()
        self._opened = False
        self._nap = NAP_SECONDS[0]
        self._calm_until = 0.0

    @property
    def stirred(self) -> bool:
        """Whether a read may find something. It need not be tried if the last one, up to LOOK_SECONDS ago, found
        nothing and nothing has been announced since."""
        return self._watch is None or time.monotonic() >= self._calm_until

    def found(self, something: bool) -> None:
        """Tell whether a read has found something; if it has, more may follow soon."""
        self._calm_until = 0.0 if something else time.monotonic() + LOOK_SECONDS
        if something:
            self._nap = NAP_SECONDS[0]

    def stir(self) -> None:
        """Make ``stirred`` true, although nothing was announced."""
        self._calm_until = 0.0

    def wait(self, seconds: float) -> None:
        """Wait for an announcement, at most ``seconds``. The first call only opens the watch."""
        if not self._opened:
            self._opened = True
            self._open()
            self.stir()  # there may be records from before the watch began
        elif self._watch is not None:
            if self._poll.poll(1000 * max(0.0, min(seconds, self._calm_until - time.monotonic()))):
                self._watch.read(timeout=0)
                self.stir()
        elif seconds > 0:
            time.sleep(min(self._nap, seconds))
            self._nap = min(self._nap * 1.5, NAP_SECONDS[1])

    def _open(self) -> None:
        watch = None
        try:
            watch = INotify()
            for path in self._paths:
                watch.add_watch(path, flags.MODIFY)
        except OSError as error:
            log.info("waiting by naps: %s (fs.inotify.max_user_instances)", error)
            if watch is not None:
                watch.close()
        else:
            self._watch = watch
            self._poll.register(watch.fileno(), select.POLLIN)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def wait_for(read: Callable[[], list[Record]], timeout: float, arrivals: Arrivals) -> list[Record]:
    """Call ``read`` until it returns records or ``timeout`` seconds have passed."""
    deadline = time.monotonic() + timeout
    while True:
        if arrivals.stirred:
            out = read()
            arrivals.found(bool(out))
            if out or time.monotonic() >= deadline:
                return out
        arrivals.wait(deadline - time.monotonic())
        if not arrivals.stirred and time.monotonic() >= deadline:
            return []
