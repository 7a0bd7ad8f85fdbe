"""The planner on its thread: what ends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from patience import HANG
from plannertools import TOPICS, Ring

from broker.errors import LogUnavailable, WriteInterrupted
from broker.log import Log, Producer
from broker.messages import Manifest, Position, decode
from broker.open import open_log
from broker.patience import PatientProducer
from learner.planning.join import read_all
from learner.planning.thread import PlanningThread
from monitoring.daemon import Stop


class Flaky:
    """A producer whose first flush finds the log away."""

    def __init__(self, producer: Producer) -> None:
        self.send, self.close, self._producer = producer.send, producer.close, producer
        self.flushed = 0

    def flush(self) -> list[Position]:
        self.flushed += 1
        if self.flushed == 1:
            raise LogUnavailable("the broker is away")
        return self._producer.flush()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with closing(open_log(f"sqlite://{tmp_path}")) as log:
        log.create(TOPICS.specs())
        yield log


def manifests(log: Log) -> Counter[tuple[int, str]]:
    with closing(log.reader(TOPICS.steps)) as reader:
        found = [decode(record.value) for record in read_all(reader, log.ends(TOPICS.steps))]
    return Counter((m.step, m.kind) for m in found if isinstance(m, Manifest))


@pytest.mark.parametrize("asked", [None, lambda thread: thread.close_stage(0)], ids=["round", "call"])
def test_a_write_that_a_stop_interrupts_ends_the_planner(
    log: Log, asked: Callable[[PlanningThread], object] | None
) -> None:
    ring, stop = Ring(log, groups_per_step=1, max_lag=1), Stop()
    ring.planner.refill(ring.stage)
    for prompt in ring.fed():
        ring.answer(prompt, [0, 1])
    flaky = Flaky(log.producer())
    ring.planner._steps = PatientProducer(flaky, stop, lambda away: None)
    thread = PlanningThread(ring.planner, ring.collections, lambda ending: None)
    thread._stage = None if asked else ring.stage
    stop.set()
    thread.start()
    if asked:
        with pytest.raises(WriteInterrupted, match="the broker is away"):
            asked(thread)
    thread._thread.join(HANG)
    ended, failure = not thread._thread.is_alive(), thread.failure
    thread.stop()
    assert ended and isinstance(failure, WriteInterrupted) and flaky.flushed == 1
    with pytest.raises(WriteInterrupted):
        thread.check()
    flaky.close()
    assert all(count == 1 for count in manifests(log).values())
