"""Daemons that are forked from a process which has imported torch and transformers once: a start costs its own work,
not these imports again.

``Nursery`` runs in the supervisor, ``headrace.running.forks`` in the importing process. A forked daemon is the
supervisor's own child, like one that it started directly: it is waited for, stopped and seen in the same way. Where
forking is unsafe (NVIDIA's driver does not survive a fork) there is no nursery, and if the nursery fails, daemons are
started directly.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from monitoring.daemon import PARENT
from monitoring.processes import Forked

PR_SET_CHILD_SUBREAPER = 36
READY_SECONDS = 120.0  # for the imports; after that daemons are started by themselves
FORK_SECONDS = 10.0
DRIVER = Path("/dev/nvidiactl")
FORKED = ("learner", "actors")
PRELOADED = (
    "torch", "transformers", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "learner.opening",
    "learner.stages.running", "actors.worker", "actors.local.engine", "broker.weights.client",
)  # fmt: skip
"""What learner and actors import before they do anything; nothing of a user."""


class Process(Protocol):
    """What the supervisor knows of a daemon's process; ``subprocess.Popen`` is one."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Nursery:
    """Starts importing at once. ``forked``: the modules that are daemons of it; ``preload``: what it imports."""

    def __init__(self, forked: Collection[str] = FORKED, preload: Sequence[str] = PRELOADED) -> None:
        self._forked, self._began, self._ready = forked, time.monotonic(), False
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [sys.executable, "-m", "headrace.running.forks", str(theirs.fileno()), *preload],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                env={"OPENBLAS_NUM_THREADS": "1", **os.environ, PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}, start_new_session=True,
            )  # fmt: skip

    def takes(self, arguments: Sequence[str]) -> bool:
        """Whether it starts this daemon."""
        return self._process is not None and arguments[0] in self._forked

    @property
    def importing(self) -> bool:
        """Whether it will be ready."""
        return self._process is not None and not self._ready

    def ready(self) -> bool:
        """Whether it can fork; once it has failed, it takes nothing more."""
        if self._process is not None and not self._ready:
            if select.select([self._socket], [], [], 0)[0]:
                self._ready = self._hear().get("ready") is True
                if not self._ready:
                    self.close()
            elif time.monotonic() - self._began > READY_SECONDS:
                self.close()
        return self._ready and self._process is not None

    def start(self, arguments: Sequence[str], output: IO[bytes], environment: Mapping[str, str]) -> Forked | None:
        """A daemon in a session of its own that writes to ``output``; None if there is no nursery any more."""
        order = {"arguments": list(arguments), "environment": dict(environment), "directory": str(Path.cwd())}
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(
            PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0
        )  # what the nursery's child leaves behind becomes this process's own
        try:
            socket.send_fds(self._socket, [json.dumps(order).encode()], [output.fileno()])
            if select.select([self._socket], [], [], FORK_SECONDS)[0] and (pid := str(self._hear().get("pid", ""))):
                return Forked(int(pid))
        except OSError:
            pass
        finally:
            libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        self.close()
        return None

    def _hear(self) -> dict[str, object]:
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(self._socket.recv(1 << 16)))
        return {}

    def close(self) -> None:
        """End it; its daemons live on."""
        if self._process is not None:
            self._socket.close()
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def nursery() -> Iterator[Nursery | None]:
    """A nursery for the time of the block, where forks are sound."""
    if DRIVER.exists():
        yield None
        return
    with contextlib.closing(Nursery()) as made:
        yield made
