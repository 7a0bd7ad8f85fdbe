"""Only what has no gap below it is committed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import LogUnavailable
from broker.log import Record
from broker.watermark import Watermark


def record(offset: int, partition: int = 0) -> Record:
    return Record("t", partition, offset, b"", b"", 0.0)


@settings(deadline=None)
@given(st.permutations(range(12)), st.integers(0, 12))
def test_the_watermark_is_the_first_gap(order: list[int], count: int) -> None:
    mark = Watermark()
    for offset in range(12):
        mark.start(record(offset))
    done = set()
    for offset in order[:count]:
        mark.done(record(offset))
        done.add(offset)
        expected = next((o for o in range(12) if o not in done), 12)
        assert mark.offsets() == {("t", 0): expected}
    assert mark.pending() == 12 - count


def test_lost_partitions_are_forgotten() -> None:
    mark = Watermark()
    mark.start(record(5, 1))
    mark.start(record(7, 2))
    mark.keep([("t", 2)])
    mark.done(record(5, 1))
    mark.done(record(7, 2))
    assert mark.offsets() == {("t", 2): 8} and mark.pending() == 0


class Failing:
    """A consumer whose first commit fails."""

    def __init__(self) -> None:
        self.commits: list[dict[tuple[str, int], int]] = []

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        self.commits.append(dict(offsets))
        if len(self.commits) == 1:
            raise LogUnavailable("away")


def test_what_could_not_be_committed_is_committed_later() -> None:
    mark, consumer = Watermark(), Failing()
    asked: Any = consumer
    mark.start(record(5))
    mark.commit(asked)
    assert not consumer.commits, "nothing was done"
    mark.done(record(5))
    with pytest.raises(LogUnavailable):
        mark.commit(asked)
    mark.commit(asked)
    mark.commit(asked)
    assert consumer.commits == [{("t", 0): 6}] * 2
