"""The alerting rules: valid, tested one by one by promtool, about metrics that exist, and each explained in the runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest

from actors.config import ActorsTable
from broker.runfile import BrokerTable, MonitoringTable, RunTable
from headrace.__main__ import COMMANDS
from headrace.commands.watch import QUERIES
from learner.tables import LearnerTable
from monitoring.metrics import ActorMetrics, BrokerMetrics, LearnerMetrics, RewarderMetrics, RunMetrics, SystemMetrics
from monitoring.prometheus import ALERTS, programs
from rewarders.config import RewarderTable

TESTS = ALERTS.with_name("alerts_test.yaml")
RUNBOOK = Path(__file__).resolve().parents[2] / "docs" / "runbook.md"
ENDINGS = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
TABLES = {
    "run": RunTable, "broker": BrokerTable, "actors": ActorsTable, "learner": LearnerTable, "monitoring": MonitoringTable,
    "rewarders.NAME": RewarderTable,
}  # fmt: skip


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def promtool(*arguments: str | Path, text: str = "") -> tuple[int, str]:
    """Its exit status and all that it says."""
    done = subprocess.run([programs() / "promtool", *arguments], input=text, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def registries() -> list[CollectorRegistry]:
    """One for each class of metrics, each child that is labelled at the call touched once."""
    made = [CollectorRegistry() for _ in range(6)]
    ActorMetrics(made[0]).aborted("update").inc()
    RewarderMetrics(made[1], "accuracy").results("value").inc()
    learner = LearnerMetrics(made[2])
    learner.step_phase("pack").observe(1)
    learner.dropped_groups("stale").inc()
    learner.groups("trained").inc()
    learner.clip_fraction("low").set(0)
    learner.rewarder_mean("accuracy").set(1)
    learner.gpu_memory("allocated").set(0)
    run = RunMetrics(made[3])
    run.lag("tiny.actors", "tiny.prompts").set(1)
    run.up("actor-0", "actor").set(1)
    run.restarts("actor-0", "actor").inc()
    broker = BrokerMetrics(made[4])
    broker.track_oldest("tiny.prompts", lambda: 0.0)
    broker.produce_errors("tiny.prompts", "LogFull").inc()
    SystemMetrics(made[5], "learner").waited("wait_data", 0.0)
    return made


def declared() -> set[str]:
    """The names of all series of the project."""
    families = [family for registry in registries() for family in registry.collect()]
    return {family.name + ending for family in families for ending in ENDINGS[family.type]}


def named(text: str) -> set[str]:
    return set(re.findall(r"\bheadrace_[a-z0-9_]+", text))


@pytest.mark.watch
def test_the_rules_are_valid() -> None:
    status, said = promtool("check", "rules", ALERTS)
    assert status == 0 and f"{len(rules())} rules found" in said, said


@pytest.mark.watch
def test_every_alert_is_tested_firing_and_resting() -> None:
    status, said = promtool("test", "rules", TESTS)
    assert status == 0, said
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    for expected in (True, False):
        assert {case["alertname"] for case in cases if bool(case.get("exp_alerts")) is expected} == set(alerts())


@pytest.mark.watch
def test_promtool_sees_an_alert_that_should_not_fire(tmp_path: Path) -> None:
    """The tests above would be worth nothing if it took silence for consent."""
    (tmp_path / ALERTS.name).write_text(ALERTS.read_text().replace("< 0.02", "< 0.5"))
    (tmp_path / TESTS.name).write_text(TESTS.read_text())
    status, said = promtool("test", "rules", tmp_path / TESTS.name)
    assert status == 1 and "alertname: HeadraceDiskFull" in said


def test_rules_ask_for_what_is_declared_or_recorded() -> None:
    asked = "\n".join([*(rule["expr"] for rule in rules()), *QUERIES.values()])
    assert len(named(asked)) > 20
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert set(re.findall(r"\bheadrace:[a-z0-9_:]+", asked)) <= recorded
    assert {name for name in named(asked) if name not in declared()} == set()


def test_each_alert_says_how_bad_it_is_with_values_and_where_to_read_on() -> None:
    for name, rule in alerts().items():
        said = rule["annotations"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert "{{ $labels.run }}" in said["summary"] and said["description"].endswith(".")
        assert said["runbook"] == f"docs/runbook.md#{name.lower()}"


def test_the_runbook_has_each_alert_and_no_other() -> None:
    text = RUNBOOK.read_text()
    headings = re.findall(r"^## (\w+)$", text, re.MULTILINE)
    assert headings == list(alerts())
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= {heading.lower() for heading in headings}


def test_the_runbook_names_what_there_is() -> None:
    text = RUNBOOK.read_text()
    commands = re.findall(r"`headrace ([a-z]+)", text)
    assert len(commands) > 10 and set(commands) <= set(COMMANDS)
    assert {name for name in named(text) if not any(name + ending in declared() for ending in ("", "_sum"))} == set()
    settings = re.findall(r"`\[([\w.]+)\] (\w+)", text)
    assert len(settings) > 10
    assert [(table, key) for table, key in settings if key not in TABLES[table].model_fields] == []


@pytest.mark.watch
@pytest.mark.parametrize("place", range(6))
def test_promtool_finds_nothing_in_what_is_exposed(place: int) -> None:
    registry = registries()[place]
    ProcessCollector(registry=registry), PlatformCollector(registry=registry)
    text = generate_latest(registry).decode()
    assert "headrace_" in text and "process_cpu_seconds_total" in text
    assert promtool("check", "metrics", text=text) == (0, "")
