"""Every metric by convention, exactly as the project promises them; time is counted once."""

from __future__ import annotations

import threading
import time

import pytest
from patience import HANG
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from monitoring.catalogue import PAGE, page
from monitoring.exporter import generate_latest
from monitoring.metrics import (
    ROLES,
    ActorMetrics,
    BrokerMetrics,
    LearnerMetrics,
    RewarderMetrics,
    RunMetrics,
    SystemMetrics,
)  # fmt: skip
from monitoring.rows import Metrics

BUCKETS = {
    "reward": "-1 -.5 -.1 0 .1 .25 .5 .75 .9 1 2",
    "staleness_versions": "0 1 2 3 4 6 8 12 16 32",
    "importance_ratio": ".1 .5 .8 .9 .95 1 1.05 1.1 1.25 2 5 10",
    "response_length_tokens": "64 128 256 512 1024 2048 4096 8192 16384 32768",
}


def made(kind: type[Metrics], registry: CollectorRegistry) -> Metrics:
    """The metrics of a class, for a rewarder or a role of a name."""
    return kind(registry, "accuracy") if kind in (RewarderMetrics, SystemMetrics) else kind(registry)


def registry_of(kind: type[Metrics]) -> CollectorRegistry:
    """The metrics of a class, each child touched once so that it is exported with its labels."""
    registry = CollectorRegistry()
    metrics = made(kind, registry)
    for name, row in kind.rows():
        found = getattr(metrics, name)
        free = [
            label
            for label in row.labels
            if label not in ("rewarder", "role") or kind not in (RewarderMetrics, SystemMetrics)
        ]
        if free:
            found(*free)
    return registry


KINDS = [ActorMetrics, RewarderMetrics, LearnerMetrics, RunMetrics, BrokerMetrics, SystemMetrics]


def families(registry: CollectorRegistry) -> dict[str, tuple[str, set[str], list[float]]]:
    """Name without prefix -> type, label names, bucket bounds, as a scraper sees them."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        bounds = [float(s.labels["le"]) for s in family.samples if "le" in s.labels][:-1]
        assert family.name.startswith("headrace_") and family.documentation
        if family.type == "counter":
            assert all(s.name.endswith(("_total", "_created")) for s in family.samples)
        else:
            assert not family.name.endswith("_total")
        if not family.name.endswith("_created"):
            found[family.name.removeprefix("headrace_")] = family.type, labels, bounds
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_declared_is_what_a_scraper_sees(kind: type[Metrics]) -> None:
    found = families(registry_of(kind))
    assert found.keys() == {row.name for _, row in kind.rows()}
    for _, row in kind.rows():
        assert found[row.name][:2] == (row.type, set(row.labels)), row.name
        if row.name in BUCKETS:
            assert found[row.name][2] == [float(bound) for bound in BUCKETS[row.name].split()]


def test_the_page_lists_every_metric_as_it_is_declared() -> None:
    assert PAGE.read_text() == page(), "docs/metrics.md is not up to date: python -m monitoring.catalogue"
    assert {kind for kinds in ROLES.values() for kind in kinds} == set(KINDS)


def test_a_step_sets_what_its_keys_name() -> None:
    registry = CollectorRegistry()
    told = {"kl_behavior": 0.5, "lr": 1e-3, "tokens_trained": 7.0, "importance_ratio_mean": 1.5, "dropped/stale": 2.0,
            "reward/accuracy": 0.25, "clip_fraction_low": 0.125, "unknown": 9.0}  # fmt: skip
    LearnerMetrics(registry).report(told)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"headrace_{name}", labels)

    assert (value("kl"), value("learning_rate"), value("tokens_total")) == (0.5, 1e-3, 7.0)
    assert (value("importance_ratio_sum"), value("dropped_groups_total", reason="stale")) == (1.5, 2.0)
    assert value("rewarder_reward_mean", rewarder="accuracy") == 0.25
    assert [value("clip_fraction", side=side) for side in ("low", "high", "dual")] == [0.125, 0.0, 0.0]


def test_a_row_names_its_series() -> None:
    assert str(LearnerMetrics.kl) == f"{LearnerMetrics.kl}" == "headrace_kl"
    assert str(LearnerMetrics.steps) == "headrace_steps_total"
    assert LearnerMetrics.staleness.bucket == "headrace_staleness_versions_bucket"
    with pytest.raises(TypeError, match="name its bucket"):
        str(LearnerMetrics.staleness)
    with pytest.raises(TypeError, match="has no bucket"):
        LearnerMetrics.kl.bucket  # noqa: B018


def test_durations_reach_as_far_as_promised() -> None:
    actor, rewarder = families(registry_of(ActorMetrics)), families(registry_of(RewarderMetrics))
    assert (actor["generation_seconds"][2][0], actor["generation_seconds"][2][-1]) == (0.5, 1800)
    assert (rewarder["latency_seconds"][2][0], rewarder["latency_seconds"][2][-1]) == (0.001, 60)


@pytest.mark.parametrize("role", [ActorMetrics, LearnerMetrics])
def test_a_daemon_holds_its_role_the_log_and_its_time(role: type[ActorMetrics] | type[LearnerMetrics]) -> None:
    registry = CollectorRegistry()
    role(registry), BrokerMetrics(registry), SystemMetrics(registry, "x")
    with pytest.raises(ValueError, match="Duplicated"):
        role(registry)


def test_children_are_looked_up_once() -> None:
    learner = LearnerMetrics(CollectorRegistry())
    assert learner.step_phase("pack") is learner.step_phase("pack")


def seconds(registry: CollectorRegistry, reason: str = "") -> float:
    labels = {"role": "x", "reason": reason} if reason else {"role": "x"}
    return registry.get_sample_value(f"headrace_{'idle' if reason else 'busy'}_seconds_total", labels) or 0.0


def test_every_second_is_counted_once_however_waits_nest_and_overlap() -> None:
    registry = CollectorRegistry()
    born = time.monotonic()
    system = SystemMetrics(registry, "x")
    with system.idle("outer"):
        time.sleep(0.02)
        with system.idle("inner"):
            time.sleep(0.02)
    first, second = threading.Event(), threading.Event()

    def other() -> None:
        with system.idle("other"):
            first.set()
            second.wait(HANG)

    thread = threading.Thread(target=other)
    with system.idle("mine"):
        thread.start()
        first.wait(HANG)
    second.set()  # ends after the block that began before it
    thread.join()
    system.waited("mine", 3600.0)  # more than has passed: not more than that is counted
    system.waited("mine", -1.0)
    system.busy()
    total = seconds(registry) + sum(seconds(registry, reason) for reason in ("outer", "inner", "other", "mine"))
    assert 0.04 <= total <= time.monotonic() - born
    assert seconds(registry, "outer") >= 0.02 and seconds(registry, "inner") >= 0.02


def test_work_and_failed_waits_are_counted() -> None:
    registry = CollectorRegistry()
    system = SystemMetrics(registry, "x")
    with pytest.raises(KeyError), system.idle("log"):
        raise KeyError
    waited = seconds(registry, "log")
    time.sleep(0.02)
    system.busy()
    assert seconds(registry) >= 0.02 and seconds(registry, "log") == waited
