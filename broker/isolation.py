"""Runs a plug-in in a child process: a hang, a crash or a memory bomb ends only that process and its children.

The parent enforces the deadline, kills the process tree, and starts it again; the child limits its own memory. Frames are length-prefixed msgpack.
This isolates failures, not attacks: code from a model runs in a sandbox, not here.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import IO, Any

import msgpack

from broker.errors import HeadraceError
from broker.faults import Failed, dumped, kind_of, place, told
from broker.frames import framed, read_frame, write_frame
from broker.processtree import close_pipes, halt, keep

Handler = Callable[[Any], Any]
Relieve = Callable[[range, float], bool]
START_SECONDS = 60.0
PATIENCE_SECONDS = 0.25  # if a payload takes longer, others may take over those queued behind it
START_ATTEMPTS = 5
MAX_FRAME = 64 << 20
DUMP_SECONDS = 1.0
STOPPED = "it was stopped meanwhile"


class Isolated:
    """``factory`` (``module:function``) is called in the child with ``options`` and returns the handler of all payloads.

    ``timeout`` limits one payload, ``start_timeout`` the making of the handler (imports, models), both in seconds; ``memory_mb`` limits the
    address space from then on (0: no limit). After the start, ``about`` is a copy of the handler's own attribute ``about``.
    """

    def __init__(
        self, factory: str, options: dict[str, Any], *,
        timeout: float = 10.0, memory_mb: int = 1024, start_timeout: float = START_SECONDS,
    ) -> None:  # fmt: skip
        self._factory, self._options, self._timeout, self._memory = factory, options, timeout, memory_mb
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._dump = -1  # memory file to which the child writes its stack on request
        self._pid = 0
        self._closed = False
        self._using = threading.RLock()  # held while the pipes and the memory file are used or closed
        self.about: Mapping[str, Any] = {}
        self.restarts = -1  # so that the first start does not count

    def start(self) -> None:
        """Start the child if it does not run. Raises HeadraceError if it cannot start, Failed if something it needs is unavailable."""
        for attempt in range(START_ATTEMPTS):
            if self._closed:
                raise Failed("killed", "closed")
            if self._process is not None and self._process.poll() is None:
                return
            self.stop()
            try:
                return self._start()
            except OSError as error:
                failure: Exception = error
            except Failed as error:
                self.stop()
                if error.kind == "outage":
                    raise
                if error.kind == "timeout":
                    raise HeadraceError(f"{self._name} has not started: {error.why}") from error
                failure = error
            if attempt == START_ATTEMPTS - 1:
                raise HeadraceError(f"the process of {self._name} does not start: {failure}") from failure

    def call(self, payloads: Sequence[Any], relieve: Relieve | None = None) -> Generator[tuple[int, Any], None, None]:
        """Handle the payloads in order; yields (index, result) for each, or (index, Failed).

        After a time-out or a crash the child is restarted and continues with the next payload. If one is slow, ``relieve(indices, seconds)``
        is called now and then with the payloads behind it and the time so far: if it takes them, this call ends after the slow one.
        """
        first, begun, stop, left = 0, 0, len(payloads), True
        try:
            while first < stop:
                try:
                    if left:
                        self.start()
                        begun, left = first, False
                        self._write(list(payloads[first:stop]))
                    answer, relieved = self._answer(range(first + 1, stop), first + 1 - begun, relieve)
                except (Failed, OSError) as error:
                    self.stop()
                    failure = (
                        error if isinstance(error, Failed) else Failed("killed", f"the judging process ended: {error}")
                    )
                    first, left = first + 1, True
                    yield first - 1, failure
                    continue
                stop = first + 1 if relieved else stop
                first += 1
                yield first - 1, _result(answer)
        finally:
            if not left and (first < stop or stop < len(payloads)):  # the caller stopped, or others took the rest
                self._leave(first - begun, told=stop < len(payloads))

    def _leave(self, wanted: int, told: bool) -> None:
        """Make the child leave its batch, and read until it confirms: it may have begun the next payload."""
        try:
            if not told:
                self._write(wanted)
            while "left" not in self._read(self._timeout, "still judging"):
                pass
        except (Failed, OSError):
            self.stop()

    def stop(self) -> None:
        """Kill the child and all its children. Safe from any thread: one that waits for an answer gets a Failed."""
        process = self._process
        if process is not None:
            halt(process)
        with self._using:
            if self._process is not process:
                return  # another thread has removed this one
            self._process = None
            if process is not None:
                close_pipes(process)
            if self._dump >= 0:
                os.close(self._dump)
                self._dump = -1

    def close(self) -> None:
        """``stop``, and never start again. Safe from another thread."""
        self._closed = True
        self.stop()

    # -- the child -----------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return str(self._options.get("use", self._factory))

    def _start(self) -> None:
        self.restarts += 1
        with self._using:
            self._buffer, self._dump = b"", os.memfd_create("stack")
            self._process = subprocess.Popen(
                [sys.executable, "-m", "broker.isolation", str(self._dump)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True, pass_fds=[self._dump],
            )  # fmt: skip
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
        if self._closed:  # meanwhile
            raise Failed("killed", "closed")
        self._write({"factory": self._factory, "options": self._options, "memory_mb": self._memory})
        self._pid = int(self._read(self._start_timeout, "no sign of life").get("pid", 0))
        answer = self._read(self._start_timeout, "not ready")
        if answer.get("kind") == "outage":
            raise Failed("outage", str(answer["error"]))
        if "error" in answer:
            self.stop()
            raise HeadraceError(f"{self._name} cannot be started: {answer['error']}")
        self.about = answer.get("about") or {}

    def _answer(self, behind: range, wanted: int, relieve: Relieve | None) -> tuple[dict[str, Any], bool]:
        """The answer to the current payload, and whether others have taken over the indices ``behind`` it. Raises Failed."""
        begun, pause, relieved = time.monotonic(), PATIENCE_SECONDS, False
        while (answer := self._frame()) is None:
            passed = time.monotonic() - begun
            if passed >= self._timeout:
                raise Failed("timeout", f"no verdict within {self._timeout:g} s{self._where()}")
            left, asking = self._timeout - passed, relieve is not None and not relieved
            if self._fill(min(pause, left) if asking else left) or not asking:
                continue
            assert relieve is not None
            if relieve(behind, time.monotonic() - begun):
                relieved = True
                if behind:
                    self._write(wanted)
            pause *= 2
        return answer, relieved and bool(behind)

    def _read(self, timeout: float, lacking: str) -> dict[str, Any]:
        """The child's next frame. Raises Failed."""
        deadline = time.monotonic() + timeout
        while (answer := self._frame()) is None:
            if not self._fill(deadline - time.monotonic()):
                raise Failed("timeout", f"{lacking} within {timeout:g} s{self._where()}")
        return answer

    def _frame(self) -> dict[str, Any] | None:
        """The next frame in the buffer; None while it is incomplete."""
        if len(self._buffer) < 4:
            return None
        size = struct.unpack("<I", self._buffer[:4])[0]
        if size > MAX_FRAME:
            raise Failed("error", "the judging process wrote something that is no answer")
        if len(self._buffer) < 4 + size:
            return None
        data, self._buffer = self._buffer[4 : 4 + size], self._buffer[4 + size :]
        answer = msgpack.unpackb(data, strict_map_key=False)
        return answer if isinstance(answer, dict) else {"error": "no answer", "kind": "error"}

    def _fill(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for output and read it; False if none came. Raises Failed if the child has ended."""
        with self._using:
            if self._process is None or self._process.stdout is None:
                raise Failed("killed", STOPPED)
            file = self._process.stdout.fileno()
            if not select.select([file], [], [], max(0.0, timeout))[0]:
                return False
            chunk = os.read(file, 1 << 16)
            if not chunk:
                raise Failed("killed", self._ending(self._process))
        self._buffer += chunk
        return True

    def _write(self, message: Any) -> None:
        """Raises Failed or OSError. Has a time limit, as a child that reads nothing must not block its parent."""
        data, deadline = memoryview(framed(message)), time.monotonic() + self._timeout
        with self._using:
            if self._process is None or self._process.stdin is None:
                raise Failed("killed", STOPPED)
            file = self._process.stdin.fileno()
            while data:
                if not select.select([], [file], [], max(0.0, deadline - time.monotonic()))[1]:
                    raise Failed("timeout", f"took no sample within {self._timeout:g} s")
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(file, data) :]

    @staticmethod
    def _ending(process: subprocess.Popen[bytes]) -> str:
        try:
            status = process.wait(5)
        except subprocess.TimeoutExpired:
            return "the judging process has closed its end"
        if status > 128:
            with contextlib.suppress(ValueError):
                return f"the judging process was ended by {signal.Signals(status - 128).name}"
        return f"the judging process ended with status {status}"

    def _where(self) -> str:
        """Where the child is now, as `` (file:line in name)``; empty if it does not answer."""
        with self._using:
            if self._dump < 0 or not self._pid:
                return ""
            with contextlib.suppress(OSError):
                os.kill(self._pid, signal.SIGUSR1)
            deadline = time.monotonic() + DUMP_SECONDS
            while time.monotonic() < deadline:
                time.sleep(0.01)
                text = os.pread(self._dump, 1 << 16, 0).decode("utf-8", "replace")
                if text.endswith("\n"):
                    return place(dumped(text))
        return ""


def _result(answer: Mapping[str, Any]) -> Any:
    return answer["result"] if "result" in answer else Failed(str(answer.get("kind")), str(answer.get("error")))


def main() -> None:
    """The child: forks its keeper, then serves payloads with the handler."""
    keep(sys.stdin.fileno())
    faulthandler.register(signal.SIGUSR1, file=int(sys.argv[1]), all_threads=False)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of a judge must not mix with the frames
    orders = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())  # neither it nor its children may read the orders
    start = read_frame(orders)
    write_frame(out, {"pid": os.getpid()})
    try:
        module, _, name = start["factory"].partition(":")
        handler: Handler = getattr(importlib.import_module(module), name)(start["options"])
        if start["memory_mb"]:
            limit = int(start["memory_mb"]) << 20
            # only the soft limit: what a judge starts, such as a sandbox with a compiler, has its own limits
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        ready = {"ready": True, "about": getattr(handler, "about", None)}
    except (Exception, SystemExit) as error:  # a judge may fail to start in any way; the parent reports it
        return write_frame(out, {"error": told(error), "kind": kind_of(error)})
    write_frame(out, ready)
    while (order := read_frame(orders)) is not None:
        if isinstance(order, int):  # it arrived after the batch was finished
            write_frame(out, {"left": True})
        else:
            judge(order, handler, orders, out)
    return None


def judge(payloads: list[Any], handler: Handler, orders: IO[bytes], out: IO[bytes]) -> None:
    """Answer each payload; if the parent sends how many it still wants, leave out the rest."""
    wanted, me = None, os.getpid()
    for number, payload in enumerate(payloads):
        if wanted is None and select.select([orders], [], [], 0)[0]:
            wanted = read_frame(orders)
        if wanted is not None and number >= wanted:
            break
        try:
            data = framed({"result": handler(payload)})
        except (Exception, SystemExit) as error:  # the plug-in boundary: a judge's exception is its verdict's error
            data = framed({"error": told(error), "kind": kind_of(error)})
        if os.getpid() != me:  # a fork that returned from the judge: only the original answers
            os._exit(0)
        out.write(data)
        out.flush()
    if wanted is not None:
        write_frame(out, {"left": True})


if __name__ == "__main__":
    main()
