"""A receiver in a process of its own, for the tests of the weight road. Says a line for every version that it has taken.

It is told its name, the control endpoint, and how it behaves: ``good``, ``stop`` (SIGSTOPs itself in the middle of the second
broadcast), ``die`` (SIGKILLs itself there), or ``deaf`` (never enters a lane).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from torch import Tensor

from broker.weights import group
from broker.weights.client import WeightClient
from broker.weights.receiver import DistributedReceiver
from broker.weights.sink import Lane, Push
from monitoring.daemon import die_with_parent


class Receiver(DistributedReceiver):
    """Behaves as it is told on its second push."""

    def __init__(self, how: str, road: Connection) -> None:
        super().__init__(self.taken)
        self._how, self._road, self._pushes = how, road, 0

    def say(self, *words: object) -> None:
        self._road.send_bytes(" ".join(map(str, words)).encode())

    def taken(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        self.say("took", version, float(tensors["w"].double().mean()))

    def join(self, lane: Lane) -> None:
        if self._how == "deaf":
            time.sleep(lane.timeout * 3)
            return
        super().join(lane)
        self.say("joined", lane.epoch, lane.world)

    def receive(self, push: Push) -> str:
        self._pushes += 1
        if self._how in ("stop", "die") and self._pushes == 2:
            how, whole = self._how, group.broadcast
            self._how = "good"
            seen = 0

            def broken(it: object, piece: Tensor, timeout: float) -> None:
                nonlocal seen
                seen += 1
                if seen == 3:
                    self.say("stopping")
                    os.kill(os.getpid(), signal.SIGSTOP if how == "stop" else signal.SIGKILL)
                whole(it, piece, timeout)

            group.broadcast = broken
            try:
                return super().receive(push)
            finally:
                group.broadcast = whole
        return super().receive(push)

    def load(self, path: Path, version: int) -> None:
        super().load(path, version)
        self.say("loaded", version)


def main(name: str, endpoint: str, how: str, road: Connection) -> None:
    """Receive until the other end of ``road`` is closed."""
    die_with_parent(os.getppid())
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    client = WeightClient(name, Receiver(how, road))
    client.connect(endpoint)
    with suppress(EOFError):
        road.recv_bytes()
    client.close()
