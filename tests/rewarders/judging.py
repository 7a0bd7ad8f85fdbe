"""A judging server in a process of its own, as tests talk to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx


@dataclass(frozen=True)
class Remote:
    """A running server: where it is, what it is to do wrong, and what it has seen."""

    url: str

    def faults(self, *faults: Any) -> None:
        httpx.post(f"{self.url}/faults", json=list(faults), trust_env=False).raise_for_status()

    def seen(self) -> list[dict[str, Any]]:
        """The requests since the last look."""
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/seen", trust_env=False).json()
        return found


@contextmanager
def judging_server() -> Iterator[Remote]:
    script = Path(__file__).with_name("judge_server.py")
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    try:
        yield Remote(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
