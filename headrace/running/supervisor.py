"""Runs one process a daemon on this machine: restarts what dies, stops what crashes in a loop, leaves no orphan."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from broker.daemon import AWAY
from broker.errors import RunFault, RunFileError
from headrace.running.nursery import Nursery, Process
from monitoring.daemon import PARENT, Stop
from monitoring.view import DaemonView

BACK_OFF = (0.2, 30.0)  # seconds before the first restart, and at most before any later one
HEALTHY_SECONDS = 60.0  # the back-off and the failure count of a daemon that has lived this long are reset
LOOP = 5  # this many failures in a row, without a healthy life in between, are a crash loop
FAULT_LOOP = 3  # the same for a daemon that reported itself that it cannot go on
DRAIN_SECONDS = 10.0
TICK_SECONDS = 1.0
OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}
"""Ends that somebody else brought about (a person, the kernel short of memory): never a failure of the daemon's own."""
OUTSIDE_BACK_OFF = 2.0  # longest delay after a kill from outside
QUICK_SECONDS = 10.0  # a daemon that was killed from outside after a life of this length is restarted at once
BAD_INPUT, FAULT = 2, 3
TAIL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Command:
    """One daemon: its name, role, and the arguments behind ``python -m``."""

    name: str
    role: str
    arguments: tuple[str, ...]


@dataclass(slots=True)
class _Daemon:
    command: Command
    process: Process | None = None
    output: IO[bytes] | None = None
    restarts: int = 0
    due: float = 0.0
    failures: int = 0
    delay: float = BACK_OFF[0]
    started: float = 0.0
    said: int = 0
    """Size of its output file when this process was started."""
    asked: bool = False
    """This process was asked to end, and its end is no failure."""
    leaving: bool = False
    """It is part of the run no more, and is forgotten once it has ended."""


class Supervisor:
    """``critical`` is the daemon whose end is the end of the run (the learner); ``logs`` takes what the daemons print; ``nursery`` starts
    those that it takes.

    Start it from a thread that lives as long as the run: the kernel ends the daemons with it.
    """

    def __init__(
        self,
        commands: Sequence[Command],
        logs: Path,
        critical: str,
        note: Callable[[str], None],
        nursery: Nursery | None = None,
    ) -> None:
        self._daemons = [_Daemon(command) for command in commands]
        self._logs, self._critical, self._note, self._nursery = logs, critical, note, nursery
        self._logs.mkdir(parents=True, exist_ok=True)

    def change(self, commands: Sequence[Command], restart: Collection[str]) -> None:
        """Start the daemons that are new in ``commands``, start those in ``restart`` anew, and let those go that are in it no more."""
        wanted = {command.name for command in commands}
        for gone in [d for d in self._daemons if d.command.name not in wanted]:
            gone.leaving = True
            self._ask(gone)
        known = {d.command.name: d for d in self._daemons}
        for command in commands:
            daemon = known.get(command.name)
            if daemon is None:
                self._daemons.append(_Daemon(command))
            elif daemon.leaving:  # it has come back before it was gone
                daemon.leaving = False
            elif command.name in restart:
                self._ask(daemon)

    def _ask(self, daemon: _Daemon) -> None:
        """Have its process end, once: to a daemon, a second signal means to end at once."""
        if daemon.process is not None and not daemon.asked:
            daemon.asked = True
            daemon.process.terminate()

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
        """Supervise until the critical daemon has finished (0) or ``stop`` (None); ``tick`` is called about once a second, from this thread.

        Raises RunFileError where a daemon refuses its input, RunFault where the critical one has a fault and where any is
        in a crash loop. However it ends, no daemon is left.
        """
        try:
            ticked = 0.0
            while not stop:
                for daemon in list(self._daemons):
                    if self._look(daemon):
                        return 0
                if time.monotonic() - ticked >= TICK_SECONDS:
                    ticked = time.monotonic()
                    tick()
                stop.wait(0.05)
            self._note(f"stopping; the daemons have {DRAIN_SECONDS:.0f} s to finish what they do")
            return None
        finally:
            self.stop()

    def _look(self, daemon: _Daemon) -> bool:
        """Start, restart or leave alone; True if the critical daemon has finished."""
        now = time.monotonic()
        if daemon.leaving:
            self._see_off(daemon)
            return False
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
        if daemon.asked:
            self._note(f"{name} is started anew: its table was edited")
            self._start(daemon)
            return False
        if status == BAD_INPUT:
            raise RunFileError(f"{name}: {self._last_words(daemon)}")
        if status == FAULT and name == self._critical:
            raise RunFault(f"{name}: {self._last_words(daemon)}")
        if now - daemon.started >= HEALTHY_SECONDS:
            daemon.failures, daemon.delay = 0, BACK_OFF[0]
        by_itself = status not in OUTSIDE and status != AWAY
        if not by_itself and now - daemon.started >= QUICK_SECONDS:
            daemon.delay = BACK_OFF[0]
        daemon.failures += by_itself
        if daemon.failures >= (FAULT_LOOP if status == FAULT else LOOP):
            raise RunFault(f"{name} has failed {daemon.failures} times in a row: {self._last_words(daemon)}")
        self._restart_later(daemon, status, BACK_OFF[1] if by_itself else OUTSIDE_BACK_OFF)
        return False

    def _see_off(self, daemon: _Daemon) -> None:
        """Forget a daemon that has left, however it ended; one that does not leave is ended with the run."""
        if daemon.process is None or daemon.process.poll() is not None:
            self._daemons.remove(daemon)
            if daemon.output is not None:
                daemon.output.close()
            self._note(f"{daemon.command.name} has left: the run file names it no more")

    def _restart_later(self, daemon: _Daemon, status: int, longest: float) -> None:
        delay = min(daemon.delay, longest)
        reason = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
        words = f": {self._last_words(daemon)}" if status > 0 else ""
        self._note(f"{daemon.command.name} ended ({reason}); starting it again in {delay:.1f} s{words}")
        daemon.restarts += 1
        daemon.due, daemon.delay = time.monotonic() + delay, min(daemon.delay * 2, longest)

    def _start(self, daemon: _Daemon) -> None:
        if daemon.output is None:
            daemon.output = (self._logs / f"{daemon.command.name}.out").open("ab")
        daemon.said = os.fstat(daemon.output.fileno()).st_size
        environment = {**os.environ, PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        forks = self._nursery
        if forks is not None and forks.takes(daemon.command.arguments):
            if forks.ready():
                daemon.process = forks.start(daemon.command.arguments, daemon.output, environment)
            elif forks.importing:
                return  # at the next look
        daemon.process = daemon.process or subprocess.Popen(
            [sys.executable, "-m", *daemon.command.arguments],
            stdin=subprocess.DEVNULL, stdout=daemon.output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        daemon.started, daemon.asked = time.monotonic(), False

    def _last_words(self, daemon: _Daemon) -> str:
        """The line in which this process reported its fault, or else its last line."""
        path = self._logs / f"{daemon.command.name}.out"
        with path.open("rb") as file:
            file.seek(max(daemon.said, path.stat().st_size - TAIL_BYTES))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
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
