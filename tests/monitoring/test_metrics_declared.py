"""Every metric by convention, exactly as the project promises them; time is counted once."""

from __future__ import annotations

import threading
import time

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from monitoring.exporter import generate_latest
from monitoring.metrics import ActorMetrics, BrokerMetrics, LearnerMetrics, RewarderMetrics, RunMetrics, SystemMetrics

PROMISED = {
    "actor": "generated_tokens:counter inflight_requests:gauge weight_version:gauge generation_seconds:histogram "
    "weight_update_seconds:histogram aborted{reason}:counter",
    "run": "consumer_lag_messages{group,topic}:gauge",
    "broker": "oldest_message_age_seconds{topic}:gauge produce_errors{reason,topic}:counter bytes{direction}:counter",
    "rewarder": "latency_seconds{rewarder}:histogram reward{rewarder}:histogram results{outcome,rewarder}:counter "
    "worker_restarts{rewarder}:counter sandbox_degraded{rewarder}:gauge",
    "learner": "step_phase_seconds{phase}:histogram tokens:counter steps:counter weight_version:gauge "
    "staleness_versions:histogram dropped_groups{reason}:counter importance_ratio:histogram importance_ratio_max:gauge "
    "clip_fraction{side}:gauge kl:gauge entropy:gauge reward_mean:gauge grad_norm:gauge ess_ratio:gauge "
    "zero_variance_group_ratio:gauge response_length_tokens:histogram weight_broadcast_seconds:histogram "
    "checkpoint_seconds:histogram gpu_memory_bytes{kind}:gauge activation_memory_bytes:gauge parameter_bytes:gauge "
    "trained_parameter_bytes:gauge optimizer_state_bytes:gauge",
    "system": "idle_seconds{reason,role}:counter busy_seconds{role}:counter",
}
BUCKETS = {
    "reward": "-1 -.5 -.1 0 .1 .25 .5 .75 .9 1 2",
    "staleness_versions": "0 1 2 3 4 6 8 12 16 32",
    "importance_ratio": ".1 .5 .8 .9 .95 1 1.05 1.1 1.25 2 5 10",
    "response_length_tokens": "64 128 256 512 1024 2048 4096 8192 16384 32768",
}


def registry_of(role: str) -> CollectorRegistry:
    """The role's metrics, each child touched once so that it is exported with its labels."""
    registry = CollectorRegistry()
    match role:
        case "actor":
            ActorMetrics(registry).aborted("update").inc()
        case "run":
            RunMetrics(registry).lag("g", "t").set(1)
        case "broker":
            broker = BrokerMetrics(registry)
            broker.track_oldest("t", lambda: 0.0)
            broker.produce_errors("t", "full").inc()
        case "rewarder":
            RewarderMetrics(registry, "accuracy").results("value").inc()
        case "learner":
            learner = LearnerMetrics(registry)
            learner.step_phase("pack").observe(1)
            learner.dropped_groups("stale").inc()
            learner.clip_fraction("low").set(0)
            learner.gpu_memory("allocated").set(0)
        case "system":
            SystemMetrics(registry, "learner").waited("wait_data", 0.0)
    return registry


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


@pytest.mark.parametrize("role", PROMISED)
def test_what_is_promised_is_declared(role: str) -> None:
    found = families(registry_of(role))
    for promise in PROMISED[role].split():
        name, kind = promise.split(":")
        name, _, labels = name.rstrip("}").partition("{")
        assert name in found, f"{role} lacks headrace_{name}"
        assert found[name][:2] == (kind, set(labels.split(",")) - {""})
        if name in BUCKETS:
            assert found[name][2] == [float(bound) for bound in BUCKETS[name].split()]


def test_durations_reach_as_far_as_promised() -> None:
    actor, rewarder = families(registry_of("actor")), families(registry_of("rewarder"))
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
            second.wait(10)

    thread = threading.Thread(target=other)
    with system.idle("mine"):
        thread.start()
        first.wait(10)
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
