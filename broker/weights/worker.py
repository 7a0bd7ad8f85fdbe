"""Drives the publisher process: starts it on demand, gives it orders, and kills it if it does not finish in time."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from broker.errors import WeightPushError
from broker.frames import Child, kill, read_frame, write_frame

MODULE = "broker.weights.process"
START_SECONDS = 60.0  # the publisher process has to import torch first
AWAY_SECONDS = 0.05  # interval at which to check whether a member has reported that it is away
TOGETHER = ("join", "push")  # orders that the publisher process carries out together with the members


class Started(Child, Protocol):
    """A started process; ``subprocess.Popen`` is one."""

    pid: int

    def poll(self) -> int | None: ...


def of_its_own(arguments: Sequence[str], files: Sequence[int]) -> Started:
    """Run ``broker.weights.process`` in a new Python, which inherits the descriptors ``files`` under the same numbers."""
    command = [sys.executable, "-m", MODULE, *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=files, start_new_session=True
    )


class PublisherProcess:
    """``files`` are the descriptors of the snapshots, of ``size`` bytes each; ``away`` returns why a member cannot take part (empty if
    all can). ``timeout`` is the limit of an order in seconds."""

    def __init__(
        self, device: str, size: int, files: Sequence[int], timeout: float, away: Callable[[], str],
        starts: int = 0, begin: Callable[[Sequence[str], Sequence[int]], Started] = of_its_own,
    ) -> None:  # fmt: skip
        self._begin = begin
        self._device, self._size, self._files, self._timeout, self._away = device, size, tuple(files), timeout, away
        self._process: Started | None = None
        self._starts = (
            starts  # continues the count of a process for another shape, as lanes refer to the number of a start
        )

    @property
    def pid(self) -> int:
        """Process id; 0 if none was started."""
        return self._process.pid if self._process is not None else 0

    @property
    def start(self) -> int:
        """Number of the start of the running process; 0 if none runs. A new start does not know the lanes of an earlier one."""
        return self._starts if self._process is not None and self._process.poll() is None else 0

    @property
    def starts(self) -> int:
        """How often a process was started, including those for other shapes."""
        return self._starts

    @property
    def restarts(self) -> int:
        return max(0, self._starts - 1)

    def order(self, do: str, **fields: Any) -> dict[str, Any]:
        """Have the process do something. Raises WeightPushError if it fails or does not finish in time."""
        process = self.running()
        assert process.stdin is not None and process.stdout is not None
        try:
            write_frame(process.stdin, {"do": do, **fields})
            answer = self._answer(process, self._timeout + 1.0, do in TOGETHER)
        except OSError as error:
            self.kill()
            raise WeightPushError(f"the publisher process has ended: {error}") from error
        if "error" in answer:
            raise WeightPushError(answer["error"])
        return answer

    def running(self) -> Started:
        """The process, started if it does not run. Raises WeightPushError if it does not start."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.kill()
        self._starts += 1
        size = max(1, self._size)
        self._process = self._begin([str(os.getpid()), self._device, str(size), *map(str, self._files)], self._files)
        self._answer(self._process, START_SECONDS, False)
        return self._process

    def kill(self) -> None:
        """Kill the process, which ends the collectives of its lanes."""
        if self._process is not None:
            kill(self._process)
            self._process = None

    def _answer(self, process: Started, limit: float, together: bool) -> dict[str, Any]:
        """Wait up to ``limit`` seconds for the answer. If the order runs ``together`` with members, give up as soon as one is away."""
        assert process.stdout is not None
        deadline = time.monotonic() + limit
        ready = select.poll()  # select() cannot handle descriptors above 1,023
        ready.register(process.stdout, select.POLLIN)
        while not ready.poll(AWAY_SECONDS * 1000):
            why = self._away() if together else ""
            if why or time.monotonic() > deadline:
                self.kill()
                raise WeightPushError(why or f"the publisher process did not finish within {limit:.0f} s")
        answer = read_frame(process.stdout)
        if answer is None:
            self.kill()
            raise WeightPushError("the publisher process has ended")
        return answer
