"""Which answer is right for which reference: the case files of the rewarders; and a comparison that hangs or dies when it is told to."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from broker.messages import ChatMessage, Sampling, Segment, Trajectory, VersionSpan
from rewarders.answers.warm import Ended, Warm

HERE = Path(__file__).parent / "rewarders"
POINT = re.compile(r"⟨U\+([0-9A-F]+)⟩")


def sample(
    text: str,
    answer: str | None = "5",
    finish: str = "stop",
    question: str = "?",
    metadata: dict[str, Any] | None = None,
) -> Trajectory:
    """A sample with this response and reference."""
    tokens = np.array([1, 2], np.int32)
    spans = (Segment("prompt", 0, 1, False), Segment("assistant", 1, 2, True))
    return Trajectory(
        "g@0", 0, 1, (ChatMessage("user", question),), answer, "", metadata or {}, {"r": 1.0}, "train", text, tokens,
        np.zeros(2, np.float32), spans, (VersionSpan(0, 1),), finish, Sampling(),
    )  # fmt: skip


class Ending(Warm):
    """A warm process that answers ``{}`` but ends as told at the requests whose keys include one of ``at``."""

    def __init__(self, ended: Ended, at: str) -> None:
        super().__init__("nowhere:factory", cpu_seconds=1.0, timeout=1.0, memory_mb=1)
        self.ended, self.at, self.asked = ended, at, 0

    def ask(self, request: dict[str, Any], seconds: float | None = None) -> Any:
        self.asked += 1
        if self.at in request:
            raise self.ended
        return {"score": 1.0}


class Case(NamedTuple):
    kind: str
    reference: str
    response: str
    right: bool


def math_cases(name: str = "math_cases.txt") -> list[Case]:
    """Lines ``= R => A`` and ``! R => A`` under ``## kind``; with ``@`` A is the whole response, otherwise what is boxed."""
    found, kind = [], ""
    for line in (HERE / name).read_text().splitlines():
        if line.startswith("## "):
            kind = line[3:]
        elif line and not line.startswith("# "):
            head, _, rest = line.partition(" ")
            reference, arrow, answer = rest.partition(" => ")
            assert arrow and head in ("=", "!", "@=", "@!"), line
            reference, answer = (
                POINT.sub(lambda m: chr(int(m.group(1), 16)), part).replace("⏎", "\n") for part in (reference, answer)
            )
            response = answer if head[0] == "@" else f"<think>t</think>So it is \\boxed{{{answer}}}."
            found.append(Case(kind, reference, response, head[-1] == "="))
    return found


def hanging() -> Callable[[dict[str, Any]], bool]:
    """The factory of a comparison that does what it is told."""

    def compare(request: dict[str, Any]) -> bool:
        if "spin" in request["answer"]:
            sum(iter(int, 1))
        if "sleep" in request["answer"]:
            time.sleep(60)
        if "eat" in request["answer"]:
            bytearray(4 << 30)
        if "kill" in request["answer"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if "crash" in request["answer"]:
            os._exit(9)
        return bool(request["answer"] == "yes")

    return compare
