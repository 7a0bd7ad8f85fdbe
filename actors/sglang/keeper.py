"""Keeps a launched server running: starts it, starts it again when it has ended, and ends it with the actor."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from actors.sglang.server import Server
from broker.errors import EngineError

log = logging.getLogger("sglang")
FAULTS = 3  # a server that ends this often in a row within SOON_SECONDS of its start is not started again
SOON_SECONDS = 60.0


class Keeper(threading.Thread):
    """Owns ``server`` on this thread, which lives as long as it. ``failure`` says why there is no server any more, which
    ``given_up`` is told."""

    def __init__(self, server: Server, given_up: Callable[[], None] = lambda: None) -> None:
        super().__init__(name="keeper", daemon=True)
        self._server, self._given_up = server, given_up
        self._stopping = threading.Event()
        self._settled = threading.Event()
        self.failure = ""

    def begin(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Start the server and wait for it; False if it was ``stopped`` before. Raises EngineError if it does not come up."""
        self.start()
        while not self._settled.wait(0.2):
            if stopped():
                self.stop()
                return False
        if self.failure:
            raise EngineError(self.failure)
        return True

    def why(self) -> str:
        """Why there is no server any more; empty while there is one."""
        return self.failure

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)

    def run(self) -> None:
        faults = 0
        try:
            while not self._stopping.is_set():
                since = time.monotonic()
                try:
                    self._server.start(self._stopping.is_set)
                    self._settled.set()
                except EngineError as error:  # once it has run, it may come up again
                    if not self._settled.is_set() or self._stopping.is_set():
                        raise
                    log.warning("%s", error)
                while self._server.alive() and not self._stopping.wait(0.5):
                    pass
                if self._stopping.is_set():
                    return
                faults = faults + 1 if time.monotonic() - since < SOON_SECONDS else 0
                if faults == FAULTS:
                    raise EngineError(f"the SGLang server at {self._server.url} has ended {FAULTS} times in a row")
                log.warning("the SGLang server at %s has ended and is started again", self._server.url)
        except EngineError as error:
            if not self._stopping.is_set():
                self.failure = str(error)
                self._given_up()
        finally:
            self._server.stop()
            self._settled.set()
