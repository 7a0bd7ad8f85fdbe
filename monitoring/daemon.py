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

PARENT = "HEADRACE_PARENT"
"""Environment variable with the pid of the supervising process; a child that finds itself orphaned exits."""


TOUCH_SECONDS = 5.0
LOST_SECONDS = 30.0


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
    daemon is alive.
    """
    entry = Registration(name, role, os.getpid(), metrics, time.time(), socket.gethostname(), own_version())
    path = run_dir / "daemons" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps(asdict(entry)))
    over = threading.Event()

    def touch() -> None:
        while not over.wait(TOUCH_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(path)

    threading.Thread(target=touch, name="registration", daemon=True).start()
    try:
        yield entry
    finally:
        over.set()
        path.unlink(missing_ok=True)


def registrations(run_dir: Path) -> list[Registration]:
    """All announced daemons that are alive: on this machine the process exists, on others the file is younger than
    ``LOST_SECONDS``.
    """
    found, here, now = [], socket.gethostname(), time.time()
    for path in sorted((run_dir / "daemons").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            entry = Registration(**json.loads(path.read_text()))
            if entry.host == here:
                with contextlib.suppress(PermissionError):  # it lives, as another user's
                    os.kill(entry.pid, 0)
            elif now - path.stat().st_mtime > LOST_SECONDS:
                continue
            found.append(entry)
    return found
