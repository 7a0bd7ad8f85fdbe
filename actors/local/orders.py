"""What other threads want of an engine: done between two decode steps, by the thread that samples."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future


class Orders:
    """``give`` from any thread, ``obey`` and ``refuse`` on the one that samples."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = queue.SimpleQueue()
        self._driver = threading.get_ident()

    def give(self, action: Callable[[], None]) -> None:
        """Have ``action`` done, and return once it is; raises what it raises."""
        if threading.get_ident() == self._driver:
            return action()
        done: Future[None] = Future()
        self._waiting.put((action, done))
        return done.result()

    def obey(self) -> None:
        """Do what is waiting; from now on this thread is the one that samples."""
        self._driver = threading.get_ident()
        while not self._waiting.empty():
            action, done = self._waiting.get()
            try:
                action()
                done.set_result(None)
            except Exception as error:  # it belongs to the thread that gave the order
                done.set_exception(error)

    def refuse(self, error: Exception) -> None:
        """End what is waiting with ``error``."""
        while not self._waiting.empty():
            self._waiting.get()[1].set_exception(error)
