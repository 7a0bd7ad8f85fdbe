"""What a run is waiting for, one line for each wait: the same in ``headrace run``, ``headrace top`` and ``headrace
doctor``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping

from monitoring.daemon import Registration
from monitoring.metrics import ActorMetrics, LearnerMetrics, RewarderMetrics, SystemMetrics

SPOKEN_SECONDS = 30.0  # shorter waits are normal in a run and are not reported
PHASES = {
    "wait_data": "waits for judged groups",
    "collect": "waits for the answers to an evaluation or a collection",
    "shift": "waits for the devices, which the engines have",
    "publish": "waits for the push of the version before",
    "checkpoint": "writes a checkpoint",
    "read": "reads the rows of its data",
    "rewrite": "waits for the rows that are rewritten",
    "review": "waits for people: headrace review RUN STAGE says where the rows lie",
}
_LABEL = re.compile(r"[{,](\w+)=([^,}]*)")


def waits(daemons: Iterable[tuple[Registration, Mapping[str, float]]], now: float) -> list[str]:
    """A line for each wait above 30 s, from the daemons' own metrics; a daemon without metrics gets no line."""
    return [
        line for entry, metrics in daemons if metrics for line in _RULES.get(entry.role, _nothing)(entry, metrics, now)
    ]


def _learner(entry: Registration, metrics: Mapping[str, float], now: float) -> Iterator[str]:
    away = {labels["rewarder"]: since for labels, since in _of(metrics, LearnerMetrics.away_since) if since}
    for rewarder, since in sorted(away.items()):
        if now - since > SPOKEN_SECONDS:
            yield f"waiting for rewarder {rewarder} since {_clock(since)}{_for(now - since)}"
    phases = {labels["phase"]: since for labels, since in _of(metrics, LearnerMetrics.phase_since) if since}
    for phase, since in phases.items():
        if now - since > SPOKEN_SECONDS:
            yield f"{entry.name} {PHASES.get(phase, f'is in {phase}')}{_for(now - since)}"
    begun = any(value for _, value in _of(metrics, LearnerMetrics.stage_begin))
    if not begun and now - entry.started > SPOKEN_SECONDS:
        yield f"{entry.name} loads its model, or takes up where it was{_for(now - entry.started)}"


def _actor(entry: Registration, metrics: Mapping[str, float], now: float) -> Iterator[str]:
    age = now - entry.started
    if metrics.get(str(ActorMetrics.generated_tokens)) or metrics.get(str(ActorMetrics.inflight)):
        return
    idle = {labels["reason"]: seconds for labels, seconds in _of(metrics, SystemMetrics.idle_seconds)}
    if age <= SPOKEN_SECONDS:
        return
    if "no_prompts" in idle:  # it serves, and has nothing to do yet
        if idle["no_prompts"] > SPOKEN_SECONDS:
            yield f"{entry.name} waits for prompts{_for(idle['no_prompts'])}"
    elif idle.get("no_policy", 0.0) > 0.5 * age:
        yield f"{entry.name} waits for the first policy{_for(age)}"
    else:
        yield f"{entry.name} loads its engine{_for(age - idle.get('no_policy', 0.0))}"


def _rewarder(entry: Registration, metrics: Mapping[str, float], now: float) -> Iterator[str]:
    for labels, degraded in _of(metrics, RewarderMetrics.degraded):
        if degraded and now - entry.started > SPOKEN_SECONDS:
            yield f"{entry.name} takes no samples: the sandbox of rewarder {labels['rewarder']} fails its self-test"


def _nothing(entry: Registration, metrics: Mapping[str, float], now: float) -> Iterator[str]:
    return iter(())


_RULES = {"learner": _learner, "actor": _actor, "rewarder": _rewarder}


def _of(metrics: Mapping[str, float], row: object) -> Iterator[tuple[dict[str, str], float]]:
    """The labels and values of a metric as it was scraped."""
    for key, value in metrics.items():
        if key.partition("{")[0] == str(row):
            yield dict(_LABEL.findall(key)), value


def _for(seconds: float) -> str:
    return f" ({seconds:.0f} s)"


def _clock(since: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(since))
