"""Metrics, exporter, logs, live view and report: true, plain, and safe with hostile text."""

from __future__ import annotations

import io
import json
import logging
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from monitoring.daemon import PARENT
from monitoring.exporter import Exporter
from monitoring.live import PlainView, RichView, render
from monitoring.logs import setup_logging
from monitoring.metrics import BrokerMetrics, LearnerMetrics, RewarderMetrics, SystemMetrics
from monitoring.report import RunReport, Sample, summary_table, write_html, write_plots
from monitoring.scrape import scrape
from monitoring.view import DaemonView, RunView, clean_text, sparkline

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[2J\x07\u202e" + "y" * 100_000


def test_metrics_are_served_by_convention() -> None:
    registry = CollectorRegistry()
    learner, broker = LearnerMetrics(registry), BrokerMetrics(registry)
    rewarder, system = RewarderMetrics(registry, "accuracy"), SystemMetrics(registry, "learner")
    learner.tokens.inc(5)
    learner.dropped_groups("stale").inc()
    broker.produce_errors("t", "LogFull").inc()
    rewarder.results("value").inc(2)
    with system.idle("wait_data"):
        pass
    health = [""]
    exporter = Exporter(registry, healthy=lambda: health[0])
    found = scrape(exporter.address, 5.0)
    assert found["headrace_tokens_total"] == 5
    assert found["headrace_dropped_groups_total{reason=stale}"] == 1
    assert found["headrace_results_total{outcome=value,rewarder=accuracy}"] == 2
    assert (
        "headrace_idle_seconds_total{reason=wait_data,role=learner}" in found
        and found["process_resident_memory_bytes"] > 0
    )
    with urllib.request.urlopen(f"http://{exporter.address}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    ours = [f for f in families if f.name.startswith("headrace_")]
    assert len(ours) > 30 and all(f.documentation for f in ours)
    with urllib.request.urlopen(f"http://{exporter.address}/healthz") as answer:
        assert answer.read() == b"ok\n"
    health[0] = "the log is away"
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"http://{exporter.address}/healthz")
    exporter.close()
    assert scrape(exporter.address, 0.2) == {}


@pytest.mark.parametrize("supervised", [True, False])
def test_log_lines_are_json_but_for_people(
    tmp_path: Path, supervised: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PARENT, "1" if supervised else "")
    before = logging.getLogger().handlers[:]
    setup_logging("learner", "learner-0", "tiny", tmp_path)
    logging.getLogger("x").warning("step %d", 3, extra={"step": 3, "group": "sums-1@0"})
    for handler in logging.getLogger().handlers:
        handler.close()
    logging.getLogger().handlers = before
    line = json.loads((tmp_path / "logs" / "learner-0.jsonl").read_text())
    assert (line["run"], line["daemon"], line["message"], line["step"], line["group"], line["level"]) == (
        "tiny", "learner-0", "step 3", 3, "sums-1@0", "warning",
    )  # fmt: skip
    said = capsys.readouterr().err
    assert said.endswith("learner WARNING step 3\n") if supervised else json.loads(said) == line


def view() -> RunView:
    return RunView(
        "tiny", "zero (rl)", 2, 4, 7, 40, 8, 75.0, {"reward_mean": 0.75, "staleness_mean": 1.0}, [("before", 0.2, 0.15, 0.25)],
        [0.1, 0.5, 0.9], 12_345.0, 4_000.0, {"prompts": 3}, [DaemonView("actor-0", "actor", 1, "restarting", 2)], ["[bold]actor-0 ended\x1b[2J"],
    )  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_display_fits_and_says_what_matters(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    console.print(render(view()))
    text = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines())
    for word in (
        "tiny",
        "zero (rl)",
        "0.750",
        "before 0.200",
        "12,345 tok/s",
        "prompts 3",
        "(2 restarts)",
        "[bold]actor-0 ended",
    ):
        assert word in text
    assert "\x1b[2J" not in text
    rich = RichView(Console(file=io.StringIO(), width=width, force_terminal=True))
    rich.update(view())
    rich.note(HOSTILE)
    rich.close()


def test_plain_lines_come_at_changes() -> None:
    out = io.StringIO()
    plain = PlainView(Console(file=out, width=80))
    state = view()
    plain.update(state)
    plain.update(state)
    state.stage = "after (evaluate)"
    plain.update(state)
    lines = out.getvalue().splitlines()
    assert len(lines) == 4 and lines[0].startswith("held-out before: pass@1 0.200")
    assert "actor-0 ended" in lines[1] and "\x1b" not in lines[1], "a note once, and clean"
    assert "step 7/40" in lines[2] and "after" in lines[3]


@pytest.mark.long
def test_the_report_is_one_file_that_loads_and_runs_nothing(tmp_path: Path) -> None:
    report = RunReport(
        "tiny", {"steps": 2, "pass_at_1": {"before": 0.1, "after": None}, "name": HOSTILE}, "# " + HOSTILE, [1.0, 2.0],
        {"reward_mean": [0.1, 0.2], "staleness_mean": [float("nan"), 1.0]}, [(1.0, "before", 0.2, 0.1, 0.3)], {"pack": [0.1, 0.2]},
        [Sample("s", HOSTILE, HOSTILE, 1.0, {"accuracy": HOSTILE})],
    )  # fmt: skip
    write_html(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in page and "</script>" not in page and "\x1b" not in page and "\u202e" not in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert len(write_plots(report, tmp_path / "plots")) == 5
    console = Console(file=io.StringIO(), width=100)
    console.print(summary_table(report.summary))
    assert "\x1b[2J" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_an_empty_run_has_a_report_too(tmp_path: Path) -> None:
    write_html(RunReport("none", {}, ""), tmp_path / "report.html")
    assert "none" in (tmp_path / "report.html").read_text()
    assert sparkline([]) == "" and sparkline([1.0, 1.0]) == "▁▁" and clean_text("a\x00b") == "a�b"
