"""Runs one process a daemon on this machine: restarts what dies, stops what crashes in a loop, leaves no orphan."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from broker.errors import RunFault
from monitoring.daemon import PARENT, Stop
from monitoring.view import DaemonView

BACK_OFF = (0.2, 30.0)  # seconds before the first and at most before any restart
LOOP = (5, 60.0)  # failures of its own within this many seconds make a crash loop
DRAIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Command:
    """One daemon: its name, role, and the arguments behind ``python -m``."""

    name: str
    role: str
    arguments: tuple[str, ...]


@dataclass(slots=True)
class _Daemon:
    command: Command
    process: subprocess.Popen[bytes] | None = None
    output: IO[bytes] | None = None
    restarts: int = 0
    due: float = 0.0
    failures: deque[float] = field(default_factory=lambda: deque(maxlen=LOOP[0]))
    delay: float = BACK_OFF[0]
    started: float = 0.0


class Supervisor:
    """``critical`` is the daemon whose end is the end of the run (the learner)."""

    def __init__(
        self, commands: Sequence[Command], directory: Path, critical: str, note: Callable[[str], None]
    ) -> None:
        self._daemons = [_Daemon(command) for command in commands]
        self._logs, self._critical, self._note = directory / "logs", critical, note
        self._logs.mkdir(parents=True, exist_ok=True)

    def views(self) -> list[DaemonView]:
        return [
            DaemonView(
                d.command.name,
                d.command.role,
                d.process.pid if d.process else 0,
                "running" if d.process else "restarting",
                d.restarts,
            )
            for d in self._daemons
        ]

    def run(self, stop: Stop, tick: Callable[[], None]) -> int | None:
        """Supervise until the critical daemon has finished (0) or ``stop`` (None); ``tick`` is called about once a second.

        Raises RunFault where a daemon fails for good: bad input, a fault of its own, or a crash loop.
        """
        try:
            ticked = 0.0
            while not stop:
                for daemon in self._daemons:
                    if self._look(daemon):
                        return 0
                if time.monotonic() - ticked >= 1.0:
                    ticked = time.monotonic()
                    tick()
                stop.wait(0.05)
            return None
        finally:
            self.stop()

    def _look(self, daemon: _Daemon) -> bool:
        """Start, restart or leave alone; True if the critical daemon has finished."""
        now = time.monotonic()
        if daemon.process is None:
            if now >= daemon.due:
                self._start(daemon)
            return False
        status = daemon.process.poll()
        if status is None:
            return False
        daemon.process = None
        name = daemon.command.name
        if status == 0 and name == self._critical:
            return True
        if status in (2, 3):
            raise RunFault(f"{name}: {self._last_words(daemon)}")
        by_itself = status >= 0
        if by_itself:
            daemon.failures.append(now)
            if len(daemon.failures) == LOOP[0] and now - daemon.failures[0] < LOOP[1]:
                raise RunFault(f"{name} has failed {LOOP[0]} times within {LOOP[1]:.0f} s: {self._last_words(daemon)}")
        if now - daemon.started > LOOP[1]:
            daemon.delay = BACK_OFF[0]
        reason = f"exit status {status}" if by_itself else signal.Signals(-status).name
        self._note(f"{name} ended ({reason}); starting it again in {daemon.delay:.1f} s")
        daemon.restarts += 1
        daemon.due, daemon.delay = now + daemon.delay, min(daemon.delay * 2, BACK_OFF[1]) if by_itself else BACK_OFF[0]
        return False

    def _start(self, daemon: _Daemon) -> None:
        if daemon.output is None:
            daemon.output = (self._logs / f"{daemon.command.name}.out").open("ab")
        environment = {**os.environ, PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        daemon.process = subprocess.Popen(
            [sys.executable, "-m", *daemon.command.arguments],
            stdin=subprocess.DEVNULL, stdout=daemon.output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        daemon.started = time.monotonic()

    def _last_words(self, daemon: _Daemon) -> str:
        """The last line that the daemon has written."""
        path = self._logs / f"{daemon.command.name}.out"
        lines = [line for line in path.read_text(errors="replace").splitlines()[-50:] if line.strip()]
        faults = [line for line in lines if line.startswith("fault: ")]
        return (faults or lines or ["it said nothing"])[-1].removeprefix("fault: ")

    def stop(self) -> None:
        """SIGTERM to all; SIGKILL to those that have not drained in time."""
        living = [d.process for d in self._daemons if d.process is not None and d.process.poll() is None]
        for process in living:
            process.terminate()
        deadline = time.monotonic() + DRAIN_SECONDS
        for process in living:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for daemon in self._daemons:
            daemon.process = None
            if daemon.output is not None:
                daemon.output.close()
                daemon.output = None


@contextlib.contextmanager
def sole_supervisor(directory: Path) -> Iterator[None]:
    """Hold the run's directory while the block runs. Raises RunFault, naming the holder, if another does."""
    path = directory / "supervisor.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFault(f"{directory} is run by another headrace already (pid {path.read_text() or '?'})") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)
