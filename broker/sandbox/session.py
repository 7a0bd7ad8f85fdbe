"""A started sandbox: orders go to the runner inside, answers come back, and a watch ends the sandbox at its limits.

A start takes some tens of milliseconds and serves any number of runs, one at a time, that share the sandbox's files.
The kernel ends the sandbox when the thread that started it ends, so start it from a thread that lasts. What comes out
of it is not trusted, and its size is limited.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import select
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from broker.sandbox.command import PRELOAD, RUNNER, SEARCH, WORK, Place, place, runner
from broker.sandbox.limits import CAUSES, Limits, Result, SandboxError
from broker.sandbox.seccomp import seccomp_filter
from broker.sandbox.watch import Watch

START_SECONDS = 20.0
GRACE_SECONDS = 3.0
MAX_HEADER = 1 << 16
_starts, _lock = count(), threading.Lock()


def _memory(data: bytes) -> int:
    """A descriptor of a file in memory that holds ``data``, at its beginning."""
    descriptor = os.memfd_create("headrace")
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


class Gone(SandboxError):
    """The sandbox has already ended, with an earlier run or by ``close``."""


class Session:
    """A sandbox and its runner. ``close`` (or the end of a ``with``) kills every process in it and waits for them."""

    def __init__(
        self, limits: Limits, readonly: Sequence[str] = (), packages: Sequence[str] = (), preload: Collection[str] = ()
    ) -> None:
        """Start a sandbox. ``preload``: those modules of PRELOAD that the runner imports before it forks.

        Raises SandboxError if this machine cannot start one.
        """
        self.limits = limits
        self.place = place()
        self._buffer = b""
        self.init, self._pidfd = -1, -1
        self._gone = self.python = ""
        with _lock:
            uid = self.place.fresh_uid(next(_starts))
        settings = {
            "uid": uid, "packages": list(packages), "preload": [name for name in PRELOAD if name in preload], "processes": limits.processes,
            "disk": limits.disk_mb << 20,
        }  # fmt: skip
        self._process = self._start(self.place, settings, [*readonly, *packages])
        self._watch = Watch(self.init, limits)
        ready = self._answer(START_SECONDS, 0)
        if isinstance(ready, Result):
            said = self._complaint()
            self.close()
            raise SandboxError(f"the sandbox does not start: {said or ready.why}. {self.place.cure}")
        self.python = str(ready[0].get("ready", ""))

    def _start(self, where: Place, settings: dict[str, Any], readonly: Sequence[str]) -> subprocess.Popen[bytes]:
        told, tell = os.pipe()
        bpf, code = _memory(seccomp_filter()), _memory(runner())
        try:
            command = [
                *where.command(self.limits, readonly), "--ro-bind-data", str(code), RUNNER, "--remount-ro", "/", "--seccomp", str(bpf), "--info-fd", str(tell), "--",
                where.python, "-I", "-S", "-B", "-X", "utf8", RUNNER, marshal.dumps(settings).hex(),
            ]  # fmt: skip
            process = subprocess.Popen(
                command, env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=(bpf, code, tell), start_new_session=True,
            )  # fmt: skip
            os.close(tell)
            tell = -1
            with os.fdopen(told, "rb") as file:
                told = -1
                with contextlib.suppress(ValueError, KeyError, OSError):
                    self.init = int(json.loads(file.read())["child-pid"])
                    self._pidfd = os.pidfd_open(self.init)
            return process
        except OSError as error:
            raise SandboxError(f"the sandbox does not start: {error}. {where.cure}") from error
        finally:
            for descriptor in (bpf, code, tell, told):
                if descriptor >= 0:
                    os.close(descriptor)

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files (name -> content) into the sandbox's directory. Raises SandboxError if they do not fit, Gone if
        it has ended."""
        names = [f"{WORK}/{name}" for name in files]
        answer = self._order({"do": "write", "names": names}, list(files.values()), GRACE_SECONDS, 0)
        if isinstance(answer, Result):
            raise Gone(answer.why)
        if "error" in answer[0]:
            raise SandboxError(f"cannot write into the sandbox: {answer[0]['error']}")

    def run(
        self, command: Sequence[str], stdin: bytes = b"", *, limits: Limits | None = None, directory: str = WORK
    ) -> Result:
        """Run a command on the sandbox's files. The result's cause names the limit that it reached, if any. Raises Gone
        if the sandbox had already ended."""
        return self._run({"command": list(command), "program": "", "call": None}, stdin, limits, directory)

    def python_file(self, name: str, stdin: bytes = b"", *, limits: Limits | None = None) -> Result:
        """Run one of the sandbox's Python files as ``__main__``, in a fork of the warm interpreter."""
        order: dict[str, Any] = {"command": [], "program": f"{WORK}/{name}", "call": None}
        return self._run(order, stdin, limits, WORK)

    def call(
        self, name: str, function: str, arguments: list[Any] | dict[str, Any], *, inplace: int | None = None,
        prelude: str = "", limits: Limits | None = None,
    ) -> Result:  # fmt: skip
        """Call ``function`` (or ``Class.method``) of a Python file, after the import lines ``prelude``.

        The result's ``value`` is what it returned or, with ``inplace``, the argument of that index after the call.
        """
        asked = {"function": function, "arguments": arguments, "inplace": inplace, "prelude": prelude}
        return self._run({"command": [], "program": f"{WORK}/{name}", "call": asked}, b"", limits, WORK)

    def _run(self, order: dict[str, Any], stdin: bytes, limits: Limits | None, directory: str) -> Result:
        bounds = limits or self.limits
        self._watch.limits = replace(bounds, disk_mb=self.limits.disk_mb, files=self.limits.files)
        self._watch.peak_mb = 0.0
        order |= {
            "do": "run", "cpu": bounds.cpu, "wall": bounds.wall_seconds, "output": bounds.output_kb << 10,
            "open_files": bounds.open_files, "memory": (bounds.memory_mb + 64 << 20) if bounds.address_space else 0,
            "directory": directory, "environment": {"PATH": SEARCH, "HOME": WORK, "LANG": "C.UTF-8", "TMPDIR": WORK},
        }  # fmt: skip
        begun = time.monotonic()
        answer = self._order(order, [stdin], 2 * bounds.wall_seconds + GRACE_SECONDS, bounds.output_kb << 10)
        wall = time.monotonic() - begun
        if isinstance(answer, Result):
            return replace(answer, wall=wall, peak_mb=self._watch.peak_mb)
        header, blobs = answer
        if "error" in header or len(blobs) != 3:
            return Result(cause="files", why=str(header.get("error", "no answer"))[:200], wall=wall)
        try:
            cause = header["cause"] if header["cause"] in CAUSES else "killed"
            peak = max(self._watch.peak_mb, float(header["peak_kb"]) / 1024)
            stdout, stderr, value = blobs
            return Result(stdout, stderr, value, int(header["status"]), cause, str(header["why"])[:200], float(header["seconds"]), wall, peak, float(header["delay"]))  # fmt: skip
        except (KeyError, TypeError, ValueError, OverflowError):
            return self._end("killed", "the runner's answer is no answer")

    def _order(
        self, header: dict[str, Any], blobs: list[bytes], seconds: float, most: int
    ) -> tuple[dict[str, Any], list[bytes]] | Result:
        if self._gone:
            raise Gone(f"the sandbox has ended: {self._gone}")
        text = marshal.dumps({**header, "blobs": [len(b) for b in blobs]})
        return self._answer(seconds, most, b"".join([struct.pack("!I", len(text)), text, *blobs]))

    def _answer(self, seconds: float, most: int, data: bytes = b"") -> tuple[dict[str, Any], list[bytes]] | Result:
        """Send ``data`` and wait at most ``seconds`` for a frame; a Result instead if the sandbox has ended, by a limit
        or by itself. ``most``: bytes of one output."""
        assert self._process.stdin is not None and self._process.stdout is not None
        orders, answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(orders, False)
        left, deadline = memoryview(data), time.monotonic() + seconds
        looked = time.monotonic()
        try:
            while (frame := self._frame(most)) is None:
                now = time.monotonic()
                if now > deadline:
                    return self._end("time", "the runner does not answer any more")
                if self.python and now - looked >= 0.05:  # until the runner is ready, its root is still this machine's
                    looked = now
                    if passed := self._watch.look():
                        return self._end(*passed)
                readable, writable, _ = select.select([answers], [orders] if left else [], [], 0.05)
                if writable:
                    left = left[os.write(orders, left[: 1 << 16]) :]
                if readable:
                    piece = os.read(answers, 1 << 18)
                    if not piece:
                        return self._end("killed", "the sandbox was ended from inside")
                    self._buffer += piece
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return self._end("killed", "the sandbox was ended from inside")
        return frame

    def _frame(self, most: int) -> tuple[dict[str, Any], list[bytes]] | None:
        """The next frame; None if the buffer does not have all of it. Raises ValueError, KeyError, TypeError."""
        if len(self._buffer) < 4:
            return None
        size = struct.unpack("!I", self._buffer[:4])[0]
        if size > MAX_HEADER:
            raise ValueError("the header is too long")
        if len(self._buffer) < 4 + size:
            return None
        header = json.loads(self._buffer[4 : 4 + size])
        sizes = header["blobs"]
        if not all(type(s) is int and s >= 0 for s in sizes) or sum(sizes) > 2 * most + MAX_HEADER:
            raise ValueError("more than may be sent")
        if len(self._buffer) < 4 + size + sum(sizes):
            return None
        blobs, at = [], 4 + size
        for length in sizes:
            blobs.append(self._buffer[at : at + length])
            at += length
        self._buffer = self._buffer[at:]
        return header, blobs

    def _end(self, cause: str, why: str) -> Result:
        self._gone = why
        self._kill()
        return Result(cause=cause, why=why)

    def _kill(self) -> None:
        """Kill the namespace's first process, and with it all others, and wait until they are gone."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            select.select([self._pidfd], [], [], 10.0)
        try:
            self._process.wait(2.0 if self._pidfd >= 0 else 0.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _complaint(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read(2000).decode(errors="replace").strip()

    def close(self) -> None:
        self._kill()
        self._gone = self._gone or "it was closed"
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
