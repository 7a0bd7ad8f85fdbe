"""Tests the sandbox on this machine: a control must run, hostile programs must be contained. Takes some seconds."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from broker.sandbox.hostile import BREACH, CONTROL, HOSTILE, INPUT, Hostile
from broker.sandbox.limits import Limits, Result, SandboxError
from broker.sandbox.session import Session
from monitoring.processes import state_of

LIMITS = Limits(cpu=0.5, wall=2.0, memory_mb=96, disk_mb=16, files=500, processes=16, output_kb=64)
AT_ONCE = 4
_passed, _lock = False, threading.Lock()


@dataclass(frozen=True, slots=True)
class Held:
    """The outcome of one program. ``why`` is empty if it was contained; ``seconds`` are on the clock."""

    name: str
    why: str
    seconds: float


def self_test(programs: Sequence[Hostile] = HOSTILE) -> list[Held]:
    """Run the control and, if that succeeds, ``programs``. Raises SandboxError if the sandbox does not even start."""
    with _bait() as (secret, port):
        held = [_try(CONTROL, secret, port)]
        if not held[0].why:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                held += pool.map(lambda program: _try(program, secret, port), programs)
    return held


def must_hold() -> None:
    """Run the self-test, unless it has already passed in this process. Raises SandboxError, which names what failed."""
    global _passed
    with _lock:
        if _passed:
            return
        broken = [f"{h.name}: {h.why}" for h in self_test() if h.why]
        if broken:
            raise SandboxError(f"the sandbox fails its self-test: {'; '.join(broken)[:400]}")
        _passed = True


def _try(program: Hostile, secret: str, port: int) -> Held:
    begun = time.monotonic()
    with Session(LIMITS) as session:
        session.write({"program.py": program.source.encode()})
        command = [session.place.python, "-I", "-S", "program.py", secret, str(port)]
        result = session.run(
            command, INPUT, limits=replace(LIMITS, address_space=program.name != "memory of many processes")
        )
        init = session.init
    seconds = time.monotonic() - begun
    return Held(program.name, _verdict(program, result) or _left(init), seconds)


def _verdict(program: Hostile, result: Result) -> str:
    said = result.stdout[-200:].decode(errors="replace").strip()
    if BREACH in result.stdout:
        return f"it got through: {said}"
    if program.causes and result.cause not in program.causes:
        error = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return f"ended as {result.cause or 'finished'} ({result.why or ''.join(error)})"
    if program.says and program.says != result.stdout:
        error = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return f"put out {said!r} {''.join(error)}"
    if len(result.stdout) > LIMITS.output_kb << 10:
        return f"put out {len(result.stdout)} bytes"
    return ""


def _left(init: int) -> str:
    """Empty if the sandbox's first process, which is the last to end, has ended, even if nobody has reaped it yet."""
    return "" if state_of(init) in ("", "Z", "X") else "its processes outlived it"


@contextlib.contextmanager
def _bait() -> Iterator[tuple[str, int]]:
    """The path of a file that every user may read, and the port of a listener on loopback."""
    with tempfile.TemporaryDirectory(prefix="headrace-") as directory, socket.create_server(("127.0.0.1", 0)) as server:
        path = Path(directory) / "secret"
        path.parent.chmod(0o755)
        path.write_text("a secret")
        yield str(path), server.getsockname()[1]
