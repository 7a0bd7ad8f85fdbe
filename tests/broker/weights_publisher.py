"""The publisher process, forked from one that has loaded torch: a test of the weight road has one of its own, and few are about its start."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import IO

from forked import Forked

from broker.weights import process

LOADED = ("broker.weights.client", "broker.weights.receiver")


class ForkedPublisher:
    """Begins as ``broker.weights.worker.of_its_own`` does, and is the same from then on."""

    def __init__(self, arguments: Sequence[str], files: Sequence[int]) -> None:
        orders, giving = multiprocessing.Pipe(duplex=False)
        answers, answering = multiprocessing.Pipe(duplex=False)
        self._process = Forked(run, (os.getpid(), list(arguments), len(files), orders, answering), LOADED)
        self.pid = self._process.pid
        self.stdin: IO[bytes] | None = os.fdopen(os.dup(giving.fileno()), "wb")
        self.stdout: IO[bytes] | None = os.fdopen(os.dup(answers.fileno()), "rb")
        for end in (orders, giving, answers, answering):
            end.close()

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self) -> int:
        return self._process.wait()

    def kill(self) -> None:
        self._process.kill()


def run(owner: int, arguments: list[str], files: int, orders: Connection, answering: Connection) -> None:
    """In the fork: the owner's descriptors, those of this process, and the program's ``main``."""
    _, device, size, *theirs = arguments
    assert len(theirs) == files
    mine = [os.open(f"/proc/{owner}/fd/{number}", os.O_RDWR) for number in theirs]
    os.dup2(orders.fileno(), 0)
    os.dup2(answering.fileno(), 1)
    sys.__stdin__ = sys.stdin = os.fdopen(0, "r")
    sys.__stdout__ = sys.stdout = os.fdopen(1, "w")
    sys.argv[1:] = [str(os.getppid()), device, size, *map(str, mine)]
    process.main()
