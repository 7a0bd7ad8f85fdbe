"""Waiting for records without asking again and again: whoever has committed writes a byte to the topic's lock file, and inotify tells.

The byte comes after the commit, so that what it announces can be read. A process that is killed between the two announces nothing: a
wait therefore ends now and then by itself. Where the kernel gives no more inotify instances, waiting is naps that grow.
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

LOOK_SECONDS = 1.0  # longest wait between two looks at the log
NAP_SECONDS = (0.0005, 0.02)  # shortest and longest nap without inotify
log = logging.getLogger("log")


def announce(lock: int) -> None:
    """Tell those who wait on the open lock file that something was committed. A full disk keeps nobody from going on."""
    with contextlib.suppress(OSError):
        os.pwrite(lock, b"\n", 0)


class Arrivals:
    """Waits until one of the lock files ``paths`` was written to. Opened at the first wait: most readers never wait."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._watch: INotify | None = None
        self._poll = select.poll()
        self._opened = False
        self._nap = NAP_SECONDS[0]
        self._calm_until = 0.0

    @property
    def stirred(self) -> bool:
        """Whether a read may find something; where nothing was announced since one that did not, it need not be tried."""
        return self._watch is None or time.monotonic() >= self._calm_until

    def found(self, something: bool) -> None:
        """Hear what a read has found: where it was something, more may follow soon."""
        self._calm_until = 0.0 if something else time.monotonic() + LOOK_SECONDS
        if something:
            self._nap = NAP_SECONDS[0]

    def stir(self) -> None:
        """The next read may find something, whatever was announced."""
        self._calm_until = 0.0

    def wait(self, seconds: float) -> None:
        """Wait for an announcement, at most ``seconds``."""
        if not self._opened:
            self._opened = True
            self._open()
            self.stir()  # what came before the watch began is there to be read
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
    """Call ``read`` until it gives something or ``timeout`` seconds are over."""
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
