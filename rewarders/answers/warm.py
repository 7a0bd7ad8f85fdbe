"""The client of ``zygote``: one comparison at a time, under a deadline."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from broker.errors import HeadraceError

START_SECONDS = 60.0
RESPAWN_SECONDS = 5.0
TIMEOUT_SIGNALS = (signal.SIGPROF, signal.SIGXCPU)


class Ended(HeadraceError):
    """The comparison did not come to its end: ``cause`` is ``timeout`` or ``killed``.

    ``by_machine``: the request is not to blame. It ran out of time on the clock before its processor time was spent, or
    something outside killed its process.
    """

    def __init__(self, cause: str, why: str, by_machine: bool = False) -> None:
        super().__init__(why)
        self.cause, self.by_machine = cause, by_machine


class Warm:
    """Sends requests to a handler in a warm process; ``factory`` (``module:function``) makes the handler.

    One request may take ``cpu_seconds`` of processor time and ``timeout`` seconds on the clock. ``memory_mb`` limits
    the address space of the process, in MiB.
    """

    def __init__(self, factory: str, *, cpu_seconds: float, timeout: float, memory_mb: int) -> None:
        self._factory, self._cpu, self._timeout, self._memory = factory, cpu_seconds, timeout, memory_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._worker = 0
        self._buffer = b""
        self._number = 0
        self._lock = threading.Lock()
        self.restarts = 0

    def ask(self, request: dict[str, Any], seconds: float | None = None) -> Any:
        """The handler's result; None if it raised. ``seconds``, if given, replaces both time limits.

        Raises Ended if the request was stopped or crashed its process, HeadraceError if the judge itself fails.
        """
        with self._lock:
            self.start()
            self._number += 1
            assert self._process is not None and self._process.stdin is not None
            try:
                cpu = self._cpu if seconds is None else seconds
                order = {"id": self._number, "cpu": cpu, "request": request}
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()
            except OSError as error:
                self.stop()
                raise HeadraceError(f"the comparing process is gone: {error}") from error
            return self._reply(self._timeout if seconds is None else seconds, cpu)

    def _reply(self, timeout: float, cpu: float) -> Any:
        deadline = time.monotonic() + timeout
        message = self._line(deadline, "id", "ended")
        if message is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._worker, signal.SIGKILL)
            self._respawned(self._line(time.monotonic() + RESPAWN_SECONDS, "ended"))
            raise Ended("timeout", f"no end within {timeout:g} s", by_machine=cpu < timeout)
        if "ended" in message:
            self._respawned(message)
            if message["signal"] in TIMEOUT_SIGNALS:
                raise Ended("timeout", f"no end within {cpu:g} s of processor time")
            why = f"more than {self._memory} MiB, or a crash (signal {message['signal']})"
            raise Ended("killed", why, by_machine=message["signal"] == signal.SIGKILL)
        return message.get("result")

    def _respawned(self, ended: dict[str, Any] | None) -> None:
        self.restarts += 1
        if ended is None or self._ready(RESPAWN_SECONDS) is None:
            self.stop()

    def start(self) -> None:
        """Start the process unless it is running, and wait until it is ready. Raises HeadraceError."""
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        command = [
            sys.executable,
            "-m",
            "rewarders.answers.zygote",
            str(os.getpid()),
            self._factory,
            str(self._memory),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        if self._ready(START_SECONDS) is None:
            self.stop()
            raise HeadraceError(f"the comparing process ({self._factory}) does not start; its error is on stderr")

    def _ready(self, seconds: float) -> dict[str, Any] | None:
        message = self._line(time.monotonic() + seconds, "ready")
        if message is not None:
            self._worker = int(message["ready"])
        return message

    def _line(self, deadline: float, *keys: str) -> dict[str, Any] | None:
        """This request's next message with one of ``keys``; None at the deadline. Raises HeadraceError if there are
        no more."""
        assert self._process is not None and self._process.stdout is not None
        file = self._process.stdout.fileno()
        while True:
            while b"\n" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\n")
                with contextlib.suppress(ValueError):  # a killed process may leave half a line
                    message = json.loads(line)
                    if any(key in message for key in keys) and message.get("id", self._number) == self._number:
                        return dict(message)
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([file], [], [], left)[0]:
                return None
            piece = os.read(file, 1 << 16)
            if not piece:
                self.stop()
                raise HeadraceError("the comparing process ended by itself")
            self._buffer += piece

    def stop(self) -> None:
        """Kill the process and its fork."""
        if self._process is not None:
            self._process.kill()  # its fork dies with it
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None
        self._buffer = b""
