"""Wakes a thread that polls sockets: any thread may call ``set``; the polling thread watches ``fileno`` and calls ``clear``."""

from __future__ import annotations

import contextlib
import os
import threading


class Wake:
    """An eventfd, so that a control thread sleeps until there is something to do."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._open = threading.Lock()

    def fileno(self) -> int:
        return self._fd

    def set(self) -> None:
        """Wake the polling thread; no effect after ``close``."""
        with self._open:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        with self._open:
            os.close(self._fd)
            self._fd = -1
