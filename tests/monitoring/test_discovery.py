"""Where a run's daemons are, as Prometheus asks for it: who leaves, dies or falls silent elsewhere disappears."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest
from patience import HANG, until
from prometheus_client import CollectorRegistry, Counter
from ringtools import SMALL

import monitoring.daemon
from broker.run import Run, announced
from monitoring.daemon import LOST_SECONDS, Registration, registered, registrations
from monitoring.discovery import targets_text, write_targets
from monitoring.exporter import Exporter
from monitoring.files import replace
from monitoring.prometheus import Prometheus, PrometheusError


def test_who_lives_is_listed_with_its_labels(tmp_path: Path) -> None:
    with registered(tmp_path, "actor-0", "actor", "127.0.0.1:9"), registered(tmp_path, "s", "sglang", "http://h:30000"):
        actor, server = json.loads(write_targets("tiny", tmp_path).read_text())
        assert actor["targets"] == ["127.0.0.1:9"] and server["targets"] == ["h:30000"]
        assert actor["labels"] == {"run": "tiny", "daemon": "actor-0", "role": "actor", "host": os.uname().nodename}
    (kafka,) = json.loads(targets_text("tiny", tmp_path, {"kafka": "10.0.0.9:7071"}))
    assert kafka["targets"] == ["10.0.0.9:7071"]
    assert kafka["labels"] == {"run": "tiny", "daemon": "kafka", "role": "kafka", "host": "10.0.0.9"}


def test_the_dead_and_the_silent_are_left_out(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with registered(tmp_path, "a", "actor", "x:1"):
        entry = json.loads((tmp_path / "daemons" / "a.json").read_text())
    for name, changed in {"dead": {"pid": child.pid}, "far": {"host": "elsewhere", "pid": child.pid}}.items():
        (tmp_path / "daemons" / f"{name}.json").write_text(json.dumps({**entry, "name": name, **changed}))
    (tmp_path / "daemons" / "torn.json").write_text("{")
    assert [r.name for r in registrations(tmp_path)] == ["far"]
    old = time.time() - LOST_SECONDS - 1
    os.utime(tmp_path / "daemons" / "far.json", (old, old))
    assert registrations(tmp_path) == []


@pytest.mark.parametrize("first_leaves_first", [True, False])
def test_of_two_daemons_of_one_name_the_one_that_stays_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_leaves_first: bool
) -> None:
    monkeypatch.setattr(monitoring.daemon, "TOUCH_SECONDS", 0.01)
    with ExitStack() as first, ExitStack() as second:
        entries = [s.enter_context(registered(tmp_path, "learner-0", "learner", "x:1")) for s in (first, second)]
        leaving, staying = (first, entries[1]) if first_leaves_first else (second, entries[0])
        assert registrations(tmp_path) == [entries[1]], "the later one is announced while both live"
        leaving.close()
        until(lambda: registrations(tmp_path) == [staying], "the announcement")
    assert not list((tmp_path / "daemons").iterdir())


def test_a_daemon_announces_itself_again_when_another_of_its_name_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring.daemon, "TOUCH_SECONDS", 0.01)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with registered(tmp_path, "learner-0", "learner", "x:1") as entry:
        killed = json.dumps({**asdict(entry), "pid": child.pid})
        replace(tmp_path / "daemons" / "learner-0.json", killed)
        until(lambda: registrations(tmp_path) == [entry], "the announcement")


def test_a_dead_daemon_whose_pid_is_another_processs_by_now_is_left_out(tmp_path: Path) -> None:
    home, old = tmp_path / "daemons", time.time() - LOST_SECONDS - 1
    home.mkdir()
    for name, started in {"before-the-boot": 1.0, "now": time.time()}.items():
        entry = Registration(name, "learner", os.getpid(), "x:1", started, os.uname().nodename, "1")
        (home / f"{name}.json").write_text(json.dumps(asdict(entry)))
        os.utime(home / f"{name}.json", (old, old))
    assert [r.name for r in registrations(tmp_path)] == ["now"]
    os.utime(home / "before-the-boot.json")
    assert len(registrations(tmp_path)) == 2, "it still touches its file: a clock was set meanwhile"


def test_an_unchanged_list_is_not_written_again(tmp_path: Path) -> None:
    with registered(tmp_path, "actor-0", "actor", "127.0.0.1:9"):
        before = write_targets("tiny", tmp_path).stat().st_mtime_ns
        assert write_targets("tiny", tmp_path).stat().st_mtime_ns == before


@pytest.mark.watch
def test_a_real_prometheus_finds_a_daemon_through_the_list(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    Counter("headrace_steps", "Optimizer steps", registry=registry).inc(7)
    exporter = Exporter(registry, pages={"/targets": lambda: targets_text("tiny", tmp_path)})
    server = None
    try:
        with registered(tmp_path, "learner-0", "learner", exporter.address):
            server = Prometheus(tmp_path / "watch", [write_targets("tiny", tmp_path)], interval="1s")
            deadline = time.monotonic() + HANG
            while not (found := server.query("headrace_steps_total")):
                assert time.monotonic() < deadline, server.get("targets")
                time.sleep(0.2)
        assert found[0]["value"][1] == "7"
        labels = found[0]["metric"]
        assert (labels["run"], labels["daemon"], labels["instance"], labels["role"]) == (
            "tiny", "learner-0", "learner-0", "learner",
        )  # fmt: skip
        with pytest.raises(PrometheusError, match="parse error"):
            server.query("rate(")
    finally:
        exporter.close()
        if server is not None:
            server.stop()


def test_a_daemon_that_listens_everywhere_is_found_by_its_machines_name(tmp_path: Path) -> None:
    run = Run.open(SMALL, ["monitoring.host=0.0.0.0"], tmp_path)
    with announced(run, "learner-0", "learner", CollectorRegistry()):
        (found,) = json.loads(targets_text("small", tmp_path))
    host, _, port = found["targets"][0].rpartition(":")
    assert host == os.uname().nodename and int(port) > 0
