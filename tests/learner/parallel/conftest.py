"""Pools of two and of three ranks, started once for all tests: loading torch is what takes the time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pooltools import Ranks


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    assert ranks.end() == [0, 0], ranks.errors()


@pytest.fixture(scope="session")
def three_ranks() -> Iterator[Ranks]:
    ranks = Ranks(3)
    yield ranks
    assert ranks.end() == [0, 0, 0], ranks.errors()
