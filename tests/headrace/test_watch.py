"""``headrace watch``, the real command: it finds a run, says where Prometheus is, tells alerts as they come and go, and ends whole."""

from __future__ import annotations

import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from patience import HANG
from prometheus_client import CollectorRegistry
from ringtools import answer_of, headrace

from broker.errors import RunFileError
from headrace.commands.watch import Alerts, watched, watched_runs
from monitoring.daemon import registered
from monitoring.exporter import Exporter
from monitoring.metrics import RunMetrics
from monitoring.prometheus import ALERTS

RULES = """
groups:
  - name: small
    rules:
      - alert: Down
        expr: headrace_daemon_up == 0
        for: 0s
        labels: {severity: critical}
        annotations:
          summary: "{{ $labels.exported_daemon }} of {{ $labels.run }} is down"
          description: "It is {{ $value }}"
          runbook: docs/runbook.md#down
"""


def run_directory(home: Path, name: str = "tiny", alerts: str = "") -> Path:
    home.mkdir()
    (home / "run.toml").write_text(f'[run]\nname = "{name}"\nmodel = "m"\n[monitoring]\nalerts = "{alerts}"\n')
    return home


class Watch:
    """The command in a process of its own, and its lines as they come."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "headrace", "watch", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)

    def line(self, words: str) -> str:
        """The next line with ``words``."""
        while words not in (line := self._queue.get(timeout=HANG)):
            self.lines.append(line)
        self.lines.append(line)
        return line


@contextmanager
def watching(*arguments: str | Path) -> Iterator[Watch]:
    watch = Watch(*arguments)
    try:
        yield watch
    finally:
        watch.process.kill()
        watch.process.wait()


@pytest.mark.watch
def test_alerts_are_told_as_they_begin_and_end(tmp_path: Path) -> None:
    home = run_directory(tmp_path / "run", alerts="../rules.yaml")
    (tmp_path / "rules.yaml").write_text(RULES)
    registry = CollectorRegistry()
    up = RunMetrics(registry).up("actor-1", "actor")
    up.set(1)
    exporter = Exporter(registry)
    try:
        with watching(home, "--port", "0", "--interval", "1", "--dir", tmp_path / "data") as watch:
            url = watch.line("Prometheus at").split(" at ")[1].split()[0]
            assert "watches tiny" in watch.lines[-1] and str(tmp_path / "rules.yaml") in watch.line("alerts")
            watch.line("Ctrl-C")
            with registered(home, "beside-0", "beside", exporter.address):  # later than the watch
                up.set(0)
                line = watch.line("ALERT")
                assert "Down [critical] daemon=beside-0 exported_daemon=actor-1 exported_role=actor" in line
                assert "actor-1 of tiny is down. It is 0. (docs/runbook.md#down)" in line
                up.set(1)
                assert "over  Down [critical]" in watch.line("over")
            with urllib.request.urlopen(f"{url}/-/healthy", timeout=HANG) as answer:
                assert answer.status == 200
            below = psutil.Process(watch.process.pid).children(recursive=True)
            assert [process.name() for process in below] == ["prometheus"]
            watch.process.send_signal(signal.SIGTERM)
            assert watch.process.wait(HANG) == 0
            assert psutil.wait_procs(below, timeout=HANG)[1] == []
    finally:
        exporter.close()
    assert (tmp_path / "data" / "data" / "wal").is_dir() and not (home / "prometheus").exists()


@pytest.mark.watch
def test_the_projects_own_rules_are_taken_and_a_killed_watch_leaves_nothing(tmp_path: Path) -> None:
    home = run_directory(tmp_path / "run")
    with watching(home, "--port", "0") as watch:
        assert str(ALERTS) in watch.line("alerts") and str(home / "prometheus") in watch.line("data")
        below = psutil.Process(watch.process.pid).children(recursive=True)
        watch.process.kill()
        assert below and psutil.wait_procs(below, timeout=HANG)[1] == []


@pytest.mark.watch
def test_a_prometheus_that_ends_is_a_fault_of_one_line(tmp_path: Path) -> None:
    with watching(run_directory(tmp_path / "run"), "--port", "0") as watch:
        watch.line("Ctrl-C")
        for process in psutil.Process(watch.process.pid).children(recursive=True):
            process.kill()
        assert "Prometheus has ended" in watch.line("headrace: ")
        assert watch.process.wait(HANG) == 3


@pytest.mark.watch
def test_a_taken_port_is_a_fault_and_bad_rules_are_bad_input(tmp_path: Path) -> None:
    home = run_directory(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = headrace("watch", str(home), "--port", port)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert f"port {port} is not available" in done.stderr and "0 takes any free one" in done.stderr
    bad = run_directory(tmp_path / "bad", alerts="../bad.yaml")
    (tmp_path / "bad.yaml").write_text("groups: [{name: a, rules: [{alert: X, expr: 'rate('}]}]")
    done = answer_of("watch", str(bad), "--port", "0")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "[monitoring] alerts" in done.stderr and "parse error" in done.stderr
    assert answer_of("watch", str(home), "--interval", "0").returncode == 2


def test_a_run_is_found_by_its_directory_or_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = run_directory(tmp_path / "run")
    assert watched(home).name == "tiny" and watched(home).rules == ALERTS
    (tmp_path / "file.toml").write_text('[run]\nname = "later"\nmodel = "m"\n')
    assert watched(tmp_path / "file.toml").directory == tmp_path / "runs" / "later"
    with pytest.raises(RunFileError, match="is no run"):
        watched(tmp_path / "nowhere")
    with pytest.raises(RunFileError, match=r"\[monitoring\] alerts = 'no.yaml': there is no file"):
        watched(run_directory(tmp_path / "other", alerts="no.yaml"))


def test_targets_are_written_unless_a_supervisor_does(tmp_path: Path) -> None:
    home = run_directory(tmp_path / "run", alerts='"\ntargets.kafka = "10.0.0.9:7071')
    run = watched(home)
    with registered(home, "actor-0", "actor", "127.0.0.1:9"):
        found = json.loads(run.write_targets().read_text())
        assert [t["targets"] for t in found] == [["127.0.0.1:9"], ["10.0.0.9:7071"]]
        with registered(home, "supervisor", "supervisor", "127.0.0.1:8"):
            assert json.loads(run.write_targets().read_text()) == found
    assert [t["labels"]["daemon"] for t in json.loads(run.write_targets().read_text())] == ["kafka"]


def test_two_runs_of_one_name_are_told_apart_only_in_two_watches(tmp_path: Path) -> None:
    one, two = run_directory(tmp_path / "one"), run_directory(tmp_path / "two")
    third = run_directory(tmp_path / "three", name="third")
    assert [run.name for run in watched_runs([one, third, one])] == ["tiny", "third"]
    with pytest.raises(RunFileError, match=r"one and .*two are both runs of the name 'tiny'"):
        watched_runs([one, two])


def test_pending_alerts_are_no_news_and_texts_drive_no_terminal() -> None:
    alerts = Alerts()
    alert = {"labels": {"alertname": "A", "run": "r"}, "annotations": {"summary": "a\x1b[2J\nb"}, "state": "pending"}
    assert alerts.look([alert], 0.0) == []
    (line,) = alerts.look([{**alert, "state": "firing"}], 0.0)
    assert line.endswith("ALERT A [none] run=r: a�[2J b.")
    assert alerts.look([{**alert, "state": "firing"}], 5.0) == []
    (line,) = alerts.look([], 90.0)
    assert line.endswith("over  A [none] run=r, after 90 s") and alerts.look([], 91.0) == []
