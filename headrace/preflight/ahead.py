"""Runs the checks in a separate process, with a time limit. Imports neither torch nor plug-ins."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from broker.runfile import RunFile
from headrace.preflight.findings import LEVELS, Finding
from monitoring.daemon import PARENT
from monitoring.view import clean_text

RUN_SECONDS = 20.0
"""How long the start of a run waits for its checks at most; ``PLAN_SECONDS`` is the limit for ``headrace plan``."""
PLAN_SECONDS = 120.0
MOST_CHARACTERS = 600


@dataclass(slots=True)
class Looked:
    """The result: ``findings`` in the order of the checks (``of`` sorts them, worst first), and the completed ``checks``.

    ``broken`` says why some checks were not completed; empty if all were. ``seconds`` is the time that they took.
    """

    findings: list[Finding] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    broken: str = ""
    seconds: float = 0.0

    @property
    def errors(self) -> list[Finding]:
        return [f for f in self.findings if f.level == "error"]

    def of(self, *levels: str) -> list[Finding]:
        return sorted((f for f in self.findings if f.level in levels), key=lambda f: LEVELS.index(f.level))


def look_ahead(file: RunFile, seconds: float, thorough: bool = False) -> Looked:
    """Make all checks of a run before it starts. After ``seconds`` the rest is dropped, and ``broken`` says so."""
    command = [sys.executable, "-m", "headrace.preflight", str(file.path)]
    command += [part for override in file.overrides for part in ("--set", override)]
    started, looked = time.monotonic(), Looked()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [*command, *["--thorough"] * thorough], stdout=subprocess.PIPE, stderr=said, stdin=subprocess.DEVNULL,
            start_new_session=True, env=os.environ | {"TOKENIZERS_PARALLELISM": "false", PARENT: str(os.getpid())},
        )  # fmt: skip
        assert child.stdout is not None
        try:
            ended = _read(child.stdout, looked, started + seconds)
            if ended and child.wait() != 0:
                looked.broken = f"the checks ended with status {child.returncode}: {_last_line(said)}"
            elif not ended:
                looked.broken = f"the checks were ended after {seconds:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # the whole process group, with the child's own children
            child.wait()
            child.stdout.close()
    looked.seconds = time.monotonic() - started
    return looked


def _read(out: IO[bytes], looked: Looked, until: float) -> bool:
    """Add the child's findings to ``looked``; returns whether its output ended before ``until`` (monotonic seconds)."""
    held = b""
    with selectors.DefaultSelector() as ready:
        ready.register(out, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0:
            if not ready.select(left):
                continue
            piece = os.read(out.fileno(), 1 << 16)
            if not piece:
                return True
            *lines, held = (held + piece).split(b"\n")
            for line in lines:
                told = json.loads(line)
                looked.checks.append(told["check"])
                looked.findings += [Finding(**found) for found in told["findings"]]
    return False


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def lines(findings: Sequence[Finding]) -> list[str]:
    return [f"  {f.level:8} {clean_text(str(f), MOST_CHARACTERS)}" for f in findings]
