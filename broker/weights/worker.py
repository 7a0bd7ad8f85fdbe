"""The publisher process as its driver sees it: started when it is needed, given orders, killed when it does not finish in time."""

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

START_SECONDS = 60.0  # the publisher process has to import torch first
AWAY_SECONDS = 0.05  # interval at which to check whether a member has said that it is away
TOGETHER = ("join", "push")  # orders that the publisher process carries out together with the members


class Started(Child, Protocol):
    """What is known of the process; ``subprocess.Popen`` is one."""

    pid: int

    def poll(self) -> int | None: ...


def of_its_own(arguments: Sequence[str], files: Sequence[int]) -> Started:
    """A Python of its own that runs ``broker.weights.process``; ``files`` stay open in it, under the same numbers."""
    command = [sys.executable, "-m", "broker.weights.process", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=files, start_new_session=True
    )


class PublisherProcess:
    """``files`` are the descriptors of the snapshots, of ``size`` bytes each; ``away`` gives the reason of a member that cannot take
    part at all (empty if all can)."""

    def __init__(
        self, device: str, size: int, files: Sequence[int], timeout: float, away: Callable[[], str],
        starts: int = 0, begin: Callable[[Sequence[str], Sequence[int]], Started] = of_its_own,
    ) -> None:  # fmt: skip
        self._begin = begin
        self._device, self._size, self._files, self._timeout, self._away = device, size, tuple(files), timeout, away
        self._process: Started | None = None
        self._starts = (
            starts  # of those before it, of weights of another shape: lanes are known by the number of a start
        )

    @property
    def pid(self) -> int:
        """0 where none was started."""
        return self._process.pid if self._process is not None else 0

    @property
    def start(self) -> int:
        """The number of the start of the one that runs; 0 where none does. Another start knows no lanes of the one before."""
        return self._starts if self._process is not None and self._process.poll() is None else 0

    @property
    def starts(self) -> int:
        """How often one was started, those before it included."""
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
        """The process, started if it does not run. Raises WeightPushError if it does not come up."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.kill()
        self._starts += 1
        size = max(1, self._size)
        self._process = self._begin([str(os.getpid()), self._device, str(size), *map(str, self._files)], self._files)
        self._answer(self._process, START_SECONDS, False)
        return self._process

    def kill(self) -> None:
        """End the process, and with it the collective that its lanes are in."""
        if self._process is not None:
            kill(self._process)
            self._process = None

    def _answer(self, process: Started, limit: float, together: bool) -> dict[str, Any]:
        """What the process answers. Where it works ``together`` with members, one that is away ends that at once."""
        assert process.stdout is not None
        deadline = time.monotonic() + limit
        ready = select.poll()  # select knows no descriptor above 1,023
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
