"""A judging server in a process of its own, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from judging import Remote, judging_server


@pytest.fixture(scope="session")
def judge_process() -> Iterator[Remote]:
    with judging_server() as remote:
        yield remote


@pytest.fixture
def remote(judge_process: Remote) -> Remote:
    """The server, with nothing wrong and nothing seen."""
    judge_process.faults()
    judge_process.seen()
    return judge_process
