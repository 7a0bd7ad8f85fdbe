"""What the learner reports while it works: phases, metrics for Prometheus, log lines."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import torch
from prometheus_client import CollectorRegistry

from broker.messages import Evaluation, StepResult
from learner.planning.fates import fate_of
from learner.planning.plans import Planned
from learner.stages.stage import Stage
from monitoring.hacking import Monitor
from monitoring.metrics import BrokerMetrics, LearnerMetrics, SystemMetrics

log_ = logging.getLogger("learner")
USUAL_STEPS = 21  # number of recent steps whose median time counts as usual


class Telemetry:
    """Collects the phases of the step under way, and exports each step's metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.metrics = LearnerMetrics(registry)
        self.system = SystemMetrics(registry, "learner")
        self.broker = BrokerMetrics(registry)
        self._hacking = Monitor()
        self._phases: dict[str, float] = {}
        self._last = time.monotonic()
        self._times: deque[float] = deque(maxlen=USUAL_STEPS)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block to phase ``name`` of the step under way."""
        start = time.monotonic()
        self.metrics.phase_since(name).set_to_current_time()
        try:
            yield
        finally:
            self.metrics.phase_since(name).set(0)
            seconds = time.monotonic() - start
            self._phases[name] = self._phases.get(name, 0.0) + seconds
            if name == "checkpoint":
                self.metrics.checkpoint_seconds.observe(seconds)

    @contextlib.contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """As ``phase``, and counted as idle time."""
        with self.phase(name), self.system.idle(name):
            yield

    def step(self, result: StepResult) -> StepResult:
        """Export a step; returns it with the phases since the step before."""
        now = time.monotonic()
        phases = {**self._phases, **result.phases}
        phases["other"] = max(0.0, now - self._last - sum(phases.values()))
        metrics = {**result.metrics, "step_seconds": now - self._last}
        self._times.append(now - self._last)
        self.metrics.usual_step.set(median(self._times))
        self._last, self._phases = now, {}
        self._export(result.step, metrics, phases)
        self._hacking.step(result.metrics)
        return dataclasses.replace(result, metrics=metrics, phases=phases)

    def log_away(self, away: bool) -> None:
        """Export whether the learner waits for the log."""
        self.broker.unavailable.set(away)

    def trained(self, planned: Planned) -> None:
        """Export what a step was made of: age and length of each of its samples."""
        self.metrics.groups("trained").inc(len(planned.groups))
        for group in planned.groups:
            for trajectory, *_ in group:
                self.metrics.staleness.observe(trajectory.staleness(planned.manifest.step))
                self.metrics.response_length.observe(trajectory.response_tokens)

    def pushed(self, seconds: float, receivers: Sequence[str], evicted: Mapping[str, int], epochs: int) -> None:
        """Export one push of weights to ``receivers``; how often members were ``evicted``, and new ``epochs``, since the push before."""
        self.metrics.broadcast_seconds.observe(seconds)
        for name in receivers:  # at 0 from its first push on: a rate needs a beginning
            self.metrics.evictions(name)
        for name, times in evicted.items():
            self.metrics.evictions(name).inc(times)
        self.metrics.epochs.inc(epochs)

    def evicted(self, name: str) -> None:
        """Export that an actor did not answer when the shift on the devices changed."""
        self.metrics.evictions(name).inc()

    def shift(self, seconds: float) -> None:
        """Export one shift of the learner on devices that it shares with engines."""
        self.metrics.shift_seconds.observe(seconds)

    def _export(self, step: int, metrics: dict[str, float], phases: dict[str, float]) -> None:
        mine = self.metrics
        mine.steps.inc()
        mine.weight_version.set(step)
        for name, seconds in phases.items():
            mine.step_phase(name).observe(seconds)
        mine.report(metrics)
        mine.last_step.set_to_current_time()
        for name, value in metrics.items():
            if name.startswith("dropped/"):
                mine.groups(fate_of(name.removeprefix("dropped/"))).inc(value)
        if torch.cuda.is_available():
            mine.gpu_memory("allocated").set(torch.cuda.memory_allocated())
            mine.gpu_memory("reserved").set(torch.cuda.memory_reserved())
            mine.gpu_memory("peak").set(torch.cuda.max_memory_allocated())

    def limits(self, max_lag: int, credits: int) -> None:
        """Export what bounds the planner in this stage (0 credits: it plans no steps)."""
        self.metrics.max_lag.set(max_lag)
        self.metrics.credits.set(credits)

    def begin_stage(self, index: int, stage: Stage) -> None:
        self._last, self._phases = time.monotonic(), {}
        self._times.clear()
        self._hacking.begin()
        self.metrics.usual_step.set(0)
        self.metrics.stage_begin.set_to_current_time()
        log_.info("stage %d: %s (%s)", index, stage.name, stage.kind)

    def evaluation(self, result: Evaluation) -> None:
        low, high = result.pass_at_1_interval
        if result.doubt:
            log_.warning("%s: %s, by %s", result.name, result.doubt, result.rewarder or "its rewarder")
        if not result.questions:
            return
        self.metrics.pass_at_1.set(result.pass_at_1)
        self.metrics.cons_at_k.set(result.cons_at_k)
        self.metrics.groups("evaluated").inc(result.questions)
        benchmark = result.name.rpartition(":")[0] or result.name
        for rewarder, gap in self._hacking.evaluation(benchmark, result.step, result.pass_at_1).items():
            self.metrics.reward_gap(rewarder).set(gap)
        log_.info(
            "%s: pass@1 %.3f [%.3f, %.3f], cons@%d %.3f over %d questions",
            result.name,
            result.pass_at_1,
            low,
            high,
            result.k,
            result.cons_at_k,
            result.questions,
        )
