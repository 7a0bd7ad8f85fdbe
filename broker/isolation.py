"""Runs a judge in a process of its own: a hang, a crash or a memory bomb ends that process and nothing else.

The parent sets the deadline, kills, and starts again; the child bounds its own memory. Frames are length-prefixed msgpack.
This isolates failures, not attacks: code from a model runs in a sandbox, not here.
"""

from __future__ import annotations

import importlib
import os
import resource
import select
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import msgpack

from broker.errors import HeadraceError
from broker.frames import kill, read_frame, write_frame
from monitoring.daemon import die_with_parent

Handler = Callable[[bytes], Any]
START_SECONDS = 60.0
PATIENCE_SECONDS = 0.25  # a payload that takes longer does not keep those behind it in its child
START_ATTEMPTS = 5
MAX_FRAME = 64 << 20


class Failed(HeadraceError):
    """One call failed: ``kind`` is ``timeout``, ``killed`` or ``error``."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(f"{kind}: {why}")
        self.kind = kind


class Isolated:
    """``factory`` (``module:function``) is called in the child with ``options`` and gives the handler of all payloads."""

    def __init__(self, factory: str, options: dict[str, Any], *, timeout: float = 10.0, memory_mb: int = 1024) -> None:
        self._factory, self._options, self._timeout, self._memory = factory, options, timeout, memory_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self.restarts = -1  # the first start is none

    def call(
        self, payloads: Sequence[bytes], let_go: Callable[[range], None] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Judge the payloads in order; yields the place of each with its result, or with what ``Failed`` it.

        After a time-out or a crash the child is started again and goes on with the payload behind. Where one is slow, the
        places behind it are ``let_go``: they are for another child, and this call ends with the slow one.
        """
        first, end = 0, len(payloads)
        while first < end:
            try:
                child, begun = self._running(), first
                write_frame(child.stdin, list(payloads[first:end]))
            except (Failed, OSError) as error:
                yield (
                    first,
                    error
                    if isinstance(error, Failed)
                    else Failed("killed", "the judging process ended before it took the sample"),
                )
                first += 1
                self.stop()
                continue
            while first < end:
                try:
                    if let_go is not None and first + 1 < end and not self._has_more(PATIENCE_SECONDS):
                        write_frame(child.stdin, first + 1 - begun)
                        let_go(range(first + 1, end))
                        end = first + 1
                    answer = self._read(self._timeout)
                except Failed as failure:
                    self.stop()
                    yield first, failure
                    first += 1
                    break
                yield first, answer["result"] if "result" in answer else Failed("error", str(answer.get("error")))
                first += 1
            if end < len(payloads):
                self._catch_up()

    def _catch_up(self) -> None:
        """Read up to the child's word that it has left its batch: it may have begun on what was let go."""
        try:
            while self._process is not None and "left" not in self._read(self._timeout):
                pass
        except Failed:
            self.stop()

    def _has_more(self, seconds: float) -> bool:
        """Whether the child says anything within ``seconds``."""
        assert self._process is not None and self._process.stdout is not None
        return bool(self._buffer or select.select([self._process.stdout.fileno()], [], [], seconds)[0])

    def _running(self) -> subprocess.Popen[bytes]:
        """The child, started if need be. Raises HeadraceError if it refuses to start, Failed if it dies at it every time."""
        for attempt in range(START_ATTEMPTS):
            if self._process is not None and self._process.poll() is None:
                return self._process
            self.stop()
            try:
                return self._start()
            except (Failed, OSError) as error:
                self.stop()
                if attempt == START_ATTEMPTS - 1:
                    raise Failed("killed", f"the judging process does not start: {error}") from error
        raise AssertionError("unreachable")

    def _start(self) -> subprocess.Popen[bytes]:
        self.restarts += 1
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "broker.isolation", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        write_frame(
            self._process.stdin, {"factory": self._factory, "options": self._options, "memory_mb": self._memory}
        )
        answer = self._read(START_SECONDS)
        if "error" in answer:
            self.stop()
            raise HeadraceError(f"{self._options.get('use', self._factory)} cannot be started: {answer['error']}")
        return self._process

    def _read(self, timeout: float) -> dict[str, Any]:
        """The child's next frame. Raises Failed."""
        assert self._process is not None and self._process.stdout is not None
        file = self._process.stdout.fileno()
        while True:
            if len(self._buffer) >= 4:
                size = struct.unpack("<I", self._buffer[:4])[0]
                if size > MAX_FRAME:
                    raise Failed("error", "the judging process wrote something that is no answer")
                if len(self._buffer) >= 4 + size:
                    data, self._buffer = self._buffer[4 : 4 + size], self._buffer[4 + size :]
                    answer = msgpack.unpackb(data)
                    return answer if isinstance(answer, dict) else {"error": "no answer"}
            ready, _, _ = select.select([file], [], [], timeout)
            if not ready:
                raise Failed("timeout", f"no verdict within {timeout:g} s")
            chunk = os.read(file, 1 << 16)
            if not chunk:
                status = self._process.wait(5)
                raise Failed("killed", f"the judging process ended with status {status}")
            self._buffer += chunk

    def stop(self) -> None:
        if self._process is not None:
            kill(self._process)
            self._process = None


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a judge prints must not come between the frames
    orders = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    start = read_frame(orders)
    try:
        module, _, name = start["factory"].partition(":")
        handler: Handler = getattr(importlib.import_module(module), name)(start["options"])
        limit = int(start["memory_mb"]) << 20
        # the soft limit alone: what a judge starts, such as a sandbox with a compiler, has bounds of its own
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except Exception as error:  # a judge may fail to start in any way; the parent says which
        return write_frame(out, {"error": f"{type(error).__name__}: {error}"})
    write_frame(out, {"ready": True})
    while (order := read_frame(orders)) is not None:
        if isinstance(order, int):  # it came when the batch was judged already
            write_frame(out, {"left": True})
        else:
            judge(order, handler, orders, out)
    return None


def judge(payloads: list[bytes], handler: Handler, orders: IO[bytes], out: IO[bytes]) -> None:
    """Answer for each payload; if the parent says how many it still wants, leave the others to other children."""
    wanted = None
    for place, payload in enumerate(payloads):
        if wanted is None and select.select([orders], [], [], 0)[0]:
            wanted = read_frame(orders)
        if wanted is not None and place >= wanted:
            break
        try:
            answer = {"result": handler(payload)}
        except (Exception, SystemExit) as error:  # the plug-in boundary: whatever a judge raises is its verdict's error
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        write_frame(out, answer)
    if wanted is not None:
        write_frame(out, {"left": True})


if __name__ == "__main__":
    main()
