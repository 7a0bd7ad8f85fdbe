"""The parts of every daemon: a stop flag, a death watch, a metrics port with /healthz, a log file, and a registration
on disk.

Linux only (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from monitoring.files import replace
from monitoring.processes import start_of

PARENT = "HEADRACE_PARENT"
"""Environment variable with the pid of the supervising process; a child that finds itself orphaned exits."""


TOUCH_SECONDS = 5.0
LOST_SECONDS = 30.0
START_SECONDS = 5.0  # the time at which a process began is known to within this


class Stop:
    """A flag set by SIGTERM or SIGINT; daemons check it between two pieces of work and sleep on it."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.signal: int | None = None

    def set(self) -> None:
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep for ``seconds``, or until the flag is set; returns whether it is."""
        return self._event.wait(seconds)

    def install(self) -> Stop:
        """Catch SIGTERM and SIGINT from now on (main thread only). A second signal ends the process at once."""

        def catch(number: int, frame: FrameType | None) -> None:
            if self._event.is_set():
                os._exit(128 + number)
            self.signal = number
            self._event.set()

        signal.signal(signal.SIGTERM, catch)
        signal.signal(signal.SIGINT, catch)
        return self


def die_with_parent(expected: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends, even by SIGKILL, so that no orphans remain.

    ``expected`` is the parent's pid, by default ``$HEADRACE_PARENT``; without either (a daemon started by hand) this
    does nothing. The kernel watches the *thread* that started this process, so start children from a thread that
    outlives them.
    """
    parent = expected if expected is not None else int(os.environ.get(PARENT, "0"))
    if not parent:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # the parent ended before the call
        os._exit(128 + signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Registration:
    """``RUN/daemons/NAME.json``: a daemon, its machine ``host``, and where its metrics are (``HOST:PORT`` or a URL).

    ``started`` is in seconds since the epoch.
    """

    name: str
    role: str
    pid: int
    metrics: str
    started: float
    host: str
    version: str
    """Version of the project that it runs."""


def own_version() -> str:
    """Version of the installed project; ``unknown`` if it is not installed."""
    from importlib import metadata

    try:
        return metadata.version("headrace")
    except metadata.PackageNotFoundError:
        return "unknown"


@contextlib.contextmanager
def registered(run_dir: Path, name: str, role: str, metrics: str) -> Iterator[Registration]:
    """Announce this daemon in the run's directory while the block runs, overwriting what a killed one left.

    The file is touched every ``TOUCH_SECONDS``: this is how other machines that share the directory know that the
    daemon is alive. Another daemon of this name may overwrite it and leave or die before this one: then it is written
    again.
    """
    entry = Registration(name, role, os.getpid(), metrics, time.time(), socket.gethostname(), own_version())
    path = run_dir / "daemons" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps(asdict(entry)))
    over = threading.Event()

    def keep() -> None:
        while not over.wait(TOUCH_SECONDS):
            with contextlib.suppress(OSError):
                found = _read(path)
                if found is not None and _same(found, entry):
                    os.utime(path)
                elif found is None or not _lives(found, path):
                    replace(path, json.dumps(asdict(entry)))

    keeper = threading.Thread(target=keep, name="registration", daemon=True)
    keeper.start()
    try:
        yield entry
    finally:
        over.set()
        keeper.join()
        found = _read(path)
        if found is not None and _same(found, entry):
            path.unlink(missing_ok=True)


def registrations(run_dir: Path) -> list[Registration]:
    """All announced daemons that are alive: on this machine the process exists and is the one that wrote the file, on
    others the file is younger than ``LOST_SECONDS``.
    """
    found = []
    for path in sorted((run_dir / "daemons").glob("*.json")):
        entry = _read(path)
        if entry is not None and _lives(entry, path):
            found.append(entry)
    return found


def _read(path: Path) -> Registration | None:
    try:
        return Registration(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _same(one: Registration, other: Registration) -> bool:
    """Whether both were written by one daemon."""
    return (one.host, one.pid, one.started) == (other.host, other.pid, other.started)


def _lives(entry: Registration, path: Path) -> bool:
    """Whether the daemon that wrote ``entry`` into ``path`` is alive."""
    try:
        touched = time.time() - path.stat().st_mtime <= LOST_SECONDS
        if entry.host != socket.gethostname():
            return touched
        os.kill(entry.pid, 0)
    except PermissionError:  # it lives, as another user's
        pass
    except (OSError, OverflowError, TypeError):
        return False
    began = start_of(entry.pid)
    # its number may be another process's by now; a daemon that touches its file is itself, whatever the clocks say
    return began is None or began <= entry.started + START_SECONDS or touched
