"""What the supervisor exports of its run: rewarders that an edit has taken out of the run file are no more spoken of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from ringtools import SMALL

import headrace.running.watcher
from broker.log import Log
from broker.run import Run
from headrace.doctor.evidence import gather
from headrace.running.progress import Progress
from headrace.running.rundir import record
from headrace.running.runfile import check
from headrace.running.watcher import Watcher
from learner.config import LearnerConfig
from monitoring.daemon import registrations
from monitoring.scrape import scrape
from monitoring.view import DaemonView


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with two rewarders, and one sample that neither has judged."""
    monkeypatch.setattr(headrace.running.watcher, "LOG_SECONDS", 0.0)
    monkeypatch.setattr("headrace.doctor.evidence.BETWEEN_SECONDS", 0.0)
    run = Run.open(SMALL, ["rewarders.brevity.external=true"], tmp_path)
    record(run)
    with closing(run.open_log()) as log, closing(log.producer()) as producer:
        for name in ("vowels", "brevity"):
            join(log, run, name)
        producer.send(run.topics.trajectories, b"k", b"v")
        producer.flush()
    return run


@pytest.fixture
def watcher(run: Run) -> Iterator[Watcher]:
    with closing(Watcher(run)) as watcher:
        yield watcher


def join(log: Log, run: Run, rewarder: str) -> None:
    topic = run.topics.trajectories
    with closing(log.consumer([topic], run.topics.group(f"rewarder.{rewarder}"), "m")) as consumer:
        consumer.poll(1, 0.0)
        consumer.commit({(topic, 0): 0})


def take_out(run: Run) -> None:
    record(Run.open(SMALL, [], run.directory))


def served(run: Run, metric: str) -> dict[str, float]:
    """The values of a metric of the supervisor, by its first label."""
    (supervisor,) = registrations(run.directory)
    found = {key: value for key, value in scrape(supervisor.metrics).items() if key.startswith(f"{metric}{{")}
    return {key.partition("=")[2].partition(",")[0]: value for key, value in found.items()}


def test_the_lag_of_a_rewarder_ends_when_it_leaves_the_run_file(run: Run, watcher: Watcher) -> None:
    watcher.look([], 0)
    assert served(run, "headrace_consumer_lag_messages") == {"small.rewarder.vowels": 1, "small.rewarder.brevity": 1}
    take_out(run)
    watcher.look([], 0)
    assert served(run, "headrace_consumer_lag_messages") == {"small.rewarder.vowels": 1}
    record(run)
    watcher.look([], 0)
    assert served(run, "headrace_consumer_lag_messages") == {"small.rewarder.vowels": 1, "small.rewarder.brevity": 1}


def test_queues_and_doctor_leave_it_out(run: Run) -> None:
    with closing(Progress(run, LearnerConfig(run.file), list)) as progress:
        assert progress.refresh().queues == {"for vowels": 1, "for brevity": 1}
        take_out(run)
        view = progress.refresh("queues")
    assert view.queues == {"for vowels": 1} and [lag.group for lag in view.lags] == ["rewarder.vowels"]
    assert [group for group, _ in gather(run, check(run.file)).lags] == ["small.rewarder.vowels"]


def test_a_daemon_that_an_edit_took_out_is_not_down_and_may_come_back(run: Run, watcher: Watcher) -> None:
    vowels, brevity = (DaemonView(f"{name}-0", "rewarder", 1, "running") for name in ("vowels", "brevity"))
    brevity.restarts = 2
    watcher.look([vowels, brevity], 0)
    watcher.look([vowels], 0)
    assert served(run, "headrace_daemon_up") == {"supervisor": 1, "vowels-0": 1}
    brevity.restarts = 0
    watcher.look([vowels, brevity], 0)
    assert served(run, "headrace_daemon_up") == {"supervisor": 1, "vowels-0": 1, "brevity-0": 1}
    assert served(run, "headrace_daemon_restarts_total")["brevity-0"] == 2
