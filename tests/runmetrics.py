"""What the daemons of a real run must export: every declared metric, alive where something has happened."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from monitoring.metrics import ActorMetrics, BrokerMetrics, LearnerMetrics, RewarderMetrics, RunMetrics
from monitoring.scrape import samples

ROLES = {
    "learner": (LearnerMetrics, BrokerMetrics),
    "actor": (ActorMetrics, BrokerMetrics),
    "rewarder": (RewarderMetrics, BrokerMetrics),
    "supervisor": (RunMetrics,),
}
QUIET = {
    "headrace_aborted": "no sample is aborted by an update that keeps them",
    "headrace_produce_errors": "no append fails",
    "headrace_log_unavailable": "the log is there",
    "headrace_dead_letters": "nothing is buried",
    "headrace_dead_letters_kept": "nothing is buried",
    "headrace_worker_restarts": "no judge dies",
    "headrace_sandbox_degraded": "no sandbox is asked for",
    "headrace_broadcast_evictions": "every receiver answers",
    "headrace_daemon_restarts": "nobody dies",
    "headrace_gpu_memory_bytes": "there is no GPU",
    "headrace_cached_prompt_tokens": "the local engine has no prefix cache",
    "headrace_skipped_records": "every sample's mix names the rewarder",
    "headrace_clip_fraction": "the policy may stay inside the clip",
    "headrace_masked_fraction": "the policy may stay inside the clip",
    "headrace_zero_variance_group_ratio": "rewards may differ in every group",
    "headrace_dropped_groups": "no group need be dropped",
    "headrace_consumer_lag_messages": "nobody need be behind at the moment of the scrape",
    "headrace_oldest_message_age_seconds": "nothing need be open at the moment of the scrape",
    "headrace_inflight_requests": "the actor may be idle at the moment of the scrape",
    "headrace_pass_at_1": "an answer of vowels alone is rare",
    "headrace_cons_at_k": "an answer of vowels alone is rare",
    "headrace_engine_mismatch": "a step need not hold a token of staleness 0",
    "headrace_turn_seconds": "engine and learner have devices of their own",
    "headrace_stage": "0 is the first stage",
    "headrace_phase_since_timestamp_seconds": "the learner computes most of the time, which is no phase of its own",
    "headrace_credits": "the RL stage may be over at the moment of the scrape",
    "headrace_max_lag_versions": "the RL stage may be over at the moment of the scrape",
    "headrace_usual_step_seconds": "the RL stage may be over at the moment of the scrape",
}
"""What may be absent or zero in a sound run on a CPU, and why."""
BUBBLE = 0.99


def declared(role: str) -> set[str]:
    """Names of the metric families of a role (counters without ``_total``)."""
    registry = CollectorRegistry()
    for kind in ROLES[role]:
        kind(registry, "x") if kind is RewarderMetrics else kind(registry)  # type: ignore[call-arg]
    return {collector._name for collector in registry._collector_to_names if hasattr(collector, "_name")}


def exposition(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def is_alive(family: Metric) -> bool:
    """Whether something was counted: a histogram by its count."""
    names = ("_count",) if family.type == "histogram" else ("_total", "")
    return any(s.value != 0 for s in family.samples if s.name in {family.name + n for n in names})


def missing_or_dead(role: str, families: Iterable[Metric], quiet: Collection[str] = ()) -> list[str]:
    found = {family.name: family for family in families}
    wanted = declared(role) - QUIET.keys() - set(quiet)
    return sorted(name for name in wanted if name not in found or not is_alive(found[name]))


def check_metrics(run: Path, quiet: Collection[str] = ()) -> dict[str, dict[str, float]]:
    """Scrape every daemon of the run: nothing missing or dead (but what is ``quiet`` in this run), all by convention, every second
    accounted for, few series. Returns what was scraped, by daemon."""
    targets = json.loads((run / "targets.json").read_text())
    check_time({t["labels"]["daemon"]: t["targets"][0] for t in targets if t["labels"]["role"] != "supervisor"})
    texts = {t["labels"]["daemon"]: (t["labels"]["role"], exposition(t["targets"][0])) for t in targets}
    assert {role for role, _ in texts.values()} == set(ROLES)
    for name, (role, text) in texts.items():
        families = list(text_string_to_metric_families(text))
        dead = missing_or_dead(role, families, quiet)
        assert not dead, f"{name}: {dead}"
        assert len(text.splitlines()) < 1000, f"{name} exports too many series"
    return {name: samples(text) for name, (_, text) in texts.items()}


def check_time(addresses: dict[str, str]) -> None:
    """Each daemon counts every second of a stretch of wall time once, as busy or as idle."""
    before = {name: counted(address) for name, address in addresses.items()}
    time.sleep(2.0)
    for name, address in addresses.items():
        then, now = before[name], counted(address)
        seconds = now.seconds - then.seconds
        least, most = now.asked - then.answered, now.answered - then.asked
        assert BUBBLE * least <= seconds <= most / BUBBLE, f"{name} counted {seconds} s of {least}..{most} s"


class Counted(NamedTuple):
    """Seconds that a daemon has counted, and when it was asked and had answered."""

    seconds: float
    asked: float
    answered: float


def counted(address: str) -> Counted:
    asked = time.monotonic()
    text = exposition(address)
    answered = time.monotonic()
    total = 0.0
    for family in text_string_to_metric_families(text):
        if family.name in ("headrace_idle_seconds", "headrace_busy_seconds"):
            total += sum(s.value for s in family.samples if s.name.endswith("_total"))
    return Counted(total, asked, answered)
