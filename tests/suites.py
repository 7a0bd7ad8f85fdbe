"""Which files have a part in a suite (``-m "kafka and not sglang"``), and which run one after the other: found without loading them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

TREES = ("processes", "chaos")
PROCESSES = "processes"
"""The lane of the files that start trees of processes."""


def asked_for(expression: str) -> set[str]:
    """The markers that each test must have by an expression like ``kafka and not sglang``; none by one of another kind."""
    terms = [term.split() for term in re.split(r"\band\b", expression)]
    if not all(len(term) == 1 or (len(term) == 2 and term[0] == "not") for term in terms):
        return set()
    return {term[0] for term in terms if len(term) == 1}


@cache
def lane_of(file: Path) -> str:
    """What one worker runs in one go: the files of ``mark.lane("NAME")``, those that start trees of processes, or else a file."""
    named = re.search(r'\bmark\.lane\("([^"]+)', file.read_text())
    if named:
        return named[1]
    return PROCESSES if markers_of(file) & {*TREES} else str(file)


@cache
def long_tests(file: Path) -> int:
    """How many tests of a file are marked as long."""
    return file.read_text().count("@pytest.mark.long\n")


@cache
def markers_of(file: Path) -> set[str]:
    """All markers that the text of a test file names, as ``mark.NAME``; those of ``tests/gpu`` share theirs."""
    return set(re.findall(r"\bmark\.(\w+)", file.read_text())) | ({"gpu"} if file.parent.name == "gpu" else set())
