"""What a suite leaves unloaded has no test in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from suites import asked_for, markers_of

TESTS = Path(__file__).resolve().parent


@pytest.mark.parametrize(
    ("expression", "markers"),
    [
        ("kafka and not sglang", {"kafka"}),
        ("not kafka and not slow", set()),
        ("real", {"real"}),
        ("not kafka and real and slow", {"real", "slow"}),
        ("kafka or sglang", set()),
        ("not (kafka or sglang)", set()),
        ("kafka and (real or slow)", set()),
        ("", set()),
    ],
)
def test_what_an_expression_asks_of_every_test_is_known(expression: str, markers: set[str]) -> None:
    assert asked_for(expression) == markers


def test_a_file_names_the_markers_of_its_tests_itself() -> None:
    """A marker that came from elsewhere would not be seen, and the file left out of its suite."""
    for file in TESTS.rglob("test_*.py"):
        for found in re.findall(r"^pytestmark = (.*)", file.read_text(), re.M):
            assert "mark." in found or "gpu" in markers_of(file), f"{file.name}: {found}"


def test_only_a_hang_ends_a_wait() -> None:
    """Limits are ``patience.HANG`` and that of ``setup.cfg``, or above: a shorter one makes a slow machine a fault."""
    for file in TESTS.rglob("*.py"):
        text = file.read_text()
        assert not re.findall(r"monotonic\(\) \+ \d.*", text), (
            f"{file.name} has a limit of its own: take until() or HANG"
        )
        for seconds in re.findall(r"\bmark\.timeout\((\d+)", text):
            assert int(seconds) >= 1800, f"{file.name}: mark.timeout({seconds}) is below the limit of every test"
