"""Processes for tests that are forked from one which has loaded torch and does nothing else: most of such a process's start is loading it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import Any


class Forked:
    """``target(*arguments)`` in a process of its own. ``loaded`` are the modules that the first of a session has the common ancestor load."""

    def __init__(self, target: Callable[..., None], arguments: Sequence[Any], loaded: Sequence[str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(loaded))
        self._process = context.Process(target=target, args=tuple(arguments))
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def wait(self, seconds: float | None = None) -> int:
        """Its exit status, that of a signal negative; raises TimeoutError."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} has not ended after {seconds} s")
        return self._process.exitcode

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, signal: int) -> None:
        if self._process.is_alive():
            os.kill(self.pid, signal)

    def kill(self) -> None:
        self._process.kill()
