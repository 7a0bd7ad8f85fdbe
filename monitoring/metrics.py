"""Every metric of the project, declared once: name, type, buckets, units (base units; ``_total`` on counters).

One registry a process, one role a registry (an actor and a learner both have a ``weight_version``). A class holds the metrics of one role, with their labels looked up already, so that a call site is
one line. Labels are of low cardinality only: never a prompt's or a trajectory's id.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

GENERATION_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)
REWARDER_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 60)
REWARD = (-1, -0.5, -0.1, 0, 0.1, 0.25, 0.5, 0.75, 0.9, 1, 2)
STALENESS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 32)
RATIO = (0.1, 0.5, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 2, 5, 10)
LENGTH = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
PHASE_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class ActorMetrics:
    """What one actor generates."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.generated_tokens = Counter("headrace_generated_tokens", "Response tokens generated", registry=registry)
        self.inflight = Gauge("headrace_inflight_requests", "Samples being generated", registry=registry)
        self.weight_version = Gauge("headrace_weight_version", "Policy version that is sampled from", registry=registry)
        self.generation_seconds = Histogram(
            "headrace_generation_seconds",
            "From admission of a sample to its end",
            buckets=GENERATION_SECONDS,
            registry=registry,
        )
        self.update_seconds = Histogram(
            "headrace_weight_update_seconds", "Taking in one set of weights", buckets=PHASE_SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("headrace_prompt_tokens", "Prompt tokens of finished samples", registry=registry)
        self.cached_prompt_tokens = Counter(
            "headrace_cached_prompt_tokens",
            "Prompt tokens that an engine took from its prefix cache",
            registry=registry,
        )
        aborted = Counter("headrace_aborted", "Samples that did not end by themselves", ["reason"], registry=registry)
        self.aborted = lru_cache(maxsize=32)(lambda reason: aborted.labels(reason))


class RewarderMetrics:
    """What one rewarder judges."""

    def __init__(self, registry: CollectorRegistry, rewarder: str) -> None:
        label = ["rewarder"]
        self.latency = Histogram(
            "headrace_latency_seconds", "One judgement", label, buckets=REWARDER_SECONDS, registry=registry
        ).labels(rewarder)
        self.reward = Histogram("headrace_reward", "Values given", label, buckets=REWARD, registry=registry).labels(
            rewarder
        )
        self.mean = Gauge(
            "headrace_reward_recent_mean", "Moving mean of the values given", label, registry=registry
        ).labels(rewarder)
        results = Counter("headrace_results", "Verdicts", ["rewarder", "outcome"], registry=registry)
        self.results = lru_cache(maxsize=8)(lambda outcome: results.labels(rewarder, outcome))
        causes = Counter(
            "headrace_judge_failures",
            "Verdicts behind a failure: time-out, kill, error, outage",
            ["rewarder", "cause"],
            registry=registry,
        )
        self.causes = lru_cache(maxsize=8)(lambda cause: causes.labels(rewarder, cause))
        self.outage = Gauge(
            "headrace_rewarder_outage", "1 while samples are held because the judge is away", label, registry=registry
        ).labels(rewarder)
        self.restarts = Counter(
            "headrace_worker_restarts", "Judging processes ended and started again", label, registry=registry
        ).labels(rewarder)
        self.skipped = Counter(
            "headrace_skipped_records", "Records that no verdict is due on", label, registry=registry
        ).labels(rewarder)
        self.degraded = Gauge(
            "headrace_sandbox_degraded", "1 while the sandbox fails its self-test", label, registry=registry
        ).labels(rewarder)


class LearnerMetrics:
    """What the learner trains."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"headrace_{name}", text, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"headrace_{name}", text, buckets=buckets, registry=registry)

        phase = Histogram(
            "headrace_step_phase_seconds", "Parts of a step", ["phase"], buckets=PHASE_SECONDS, registry=registry
        )
        self.step_phase = lru_cache(maxsize=32)(lambda name: phase.labels(name))
        since = Gauge(
            "headrace_phase_since_timestamp_seconds",
            "When the learner entered a phase that it is in, seconds since the epoch; 0 while it is not",
            ["phase"],
            registry=registry,
        )
        self.phase_since = lru_cache(maxsize=32)(lambda name: since.labels(name))
        self.tokens = Counter("headrace_tokens", "Response tokens trained", registry=registry)
        self.steps = Counter("headrace_steps", "Optimizer steps", registry=registry)
        self.weight_version = gauge("weight_version", "Newest policy version")
        self.staleness = histogram("staleness_versions", "Versions between sampling and training", STALENESS)
        dropped = Counter("headrace_dropped_groups", "Groups that ended untrained", ["reason"], registry=registry)
        self.dropped_groups = lru_cache(maxsize=32)(lambda reason: dropped.labels(reason))
        self.importance_ratio = histogram("importance_ratio", "Mean of pi/mu of a step", RATIO)
        self.importance_ratio_max = gauge("importance_ratio_max", "Largest pi/mu of the last step")
        clip = Gauge("headrace_clip_fraction", "Share of tokens clipped or masked", ["side"], registry=registry)
        self.clip_fraction = lru_cache(maxsize=8)(lambda side: clip.labels(side))
        self.masked_fraction = gauge("masked_fraction", "Share of tokens without a gradient")
        self.mismatch = gauge("engine_mismatch", "Mean |log pi - log mu| of tokens of staleness 0, nats")
        self.kl = gauge("kl", "k3 divergence between behaviour and policy")
        self.entropy = gauge("entropy", "Entropy of the policy, nats a token")
        self.loss = gauge("loss", "Loss of the last step")
        self.learning_rate = gauge("learning_rate", "Learning rate of the last step")
        self.reward_mean = gauge("reward_mean", "Mean reward of the groups judged for the last step")
        vote = Gauge(
            "headrace_rewarder_reward_mean",
            "Mean value of a rewarder in the last step",
            ["rewarder"],
            registry=registry,
        )
        self.rewarder_mean = lru_cache(maxsize=64)(lambda rewarder: vote.labels(rewarder))
        self.grad_norm = gauge("grad_norm", "Gradient norm before clipping")
        self.ess_ratio = gauge("ess_ratio", "Effective sample size over sample size")
        self.zero_variance_group_ratio = gauge("zero_variance_group_ratio", "Share of groups without a gradient")
        self.response_length = histogram("response_length_tokens", "Mean response length of a step", LENGTH)
        self.broadcast_seconds = histogram(
            "weight_broadcast_seconds", "One push of weights to all receivers", PHASE_SECONDS
        )
        self.turn_seconds = histogram(
            "turn_seconds", "One turn of the learner on devices that it shares with engines", PHASE_SECONDS
        )
        self.checkpoint_seconds = histogram("checkpoint_seconds", "Writing one checkpoint", PHASE_SECONDS)
        evictions = Counter(
            "headrace_broadcast_evictions", "Receivers that did not answer a push", ["member"], registry=registry
        )
        self.evictions = lru_cache(maxsize=1024)(lambda member: evictions.labels(member))
        self.epochs = Counter("headrace_membership_epochs", "Broadcast groups formed anew", registry=registry)
        self.receivers = gauge("weight_receivers", "Receivers of weights that are alive")
        self.outstanding = gauge("outstanding_groups", "Groups that are fed but not ended")
        self.credits = gauge("credits", "Groups that may be outstanding at once (0: no RL stage is under way)")
        self.max_lag = gauge("max_lag_versions", "Largest staleness that is trained")
        groups = Counter("headrace_groups", "Groups that ended", ["fate"], registry=registry)
        self.groups = lru_cache(maxsize=8)(lambda fate: groups.labels(fate))
        self.last_step = gauge("last_step_timestamp_seconds", "When the last step ended, seconds since the epoch")
        self.stage_begin = gauge("stage_begin_timestamp_seconds", "When the stage began, seconds since the epoch")
        self.usual_step = gauge("usual_step_seconds", "Median time of the stage's last steps (0: none yet)")
        self.pass_at_1 = gauge("pass_at_1", "Held-out pass@1 of the last evaluation")
        self.cons_at_k = gauge("cons_at_k", "Held-out majority vote of the last evaluation")
        memory = Gauge("headrace_gpu_memory_bytes", "Device memory", ["kind"], registry=registry)
        self.gpu_memory = lru_cache(maxsize=4)(lambda kind: memory.labels(kind))
        self.activation_memory = gauge(
            "activation_memory_bytes",
            "What the forward pass of a chunk holds for its backward pass, the most of a step",
        )
        self.parameter_bytes = gauge("parameter_bytes", "Size of the learner's model")
        self.trained_parameter_bytes = gauge("trained_parameter_bytes", "Size of the parameters that take a gradient")
        self.optimizer_state = gauge("optimizer_state_bytes", "Size of the optimizer's state, wherever it lies")


class RunMetrics:
    """What only somebody beside the daemons can see: who is alive, how far each group is behind, how full the disk is."""

    def __init__(self, registry: CollectorRegistry) -> None:
        lag = Gauge(
            "headrace_consumer_lag_messages",
            "Records behind a group's committed offsets",
            ["group", "topic"],
            registry=registry,
        )
        self.lag = lru_cache(maxsize=256)(lambda group, topic: lag.labels(group, topic))
        up = Gauge("headrace_daemon_up", "1 while the daemon runs", ["daemon", "role"], registry=registry)
        self.up = lru_cache(maxsize=1024)(lambda daemon, role: up.labels(daemon, role))
        restarts = Counter(
            "headrace_daemon_restarts", "Ends that a restart followed", ["daemon", "role"], registry=registry
        )
        self.restarts = lru_cache(maxsize=1024)(lambda daemon, role: restarts.labels(daemon, role))
        self.disk_free = Gauge("headrace_disk_free_bytes", "Room on the disk of the run's directory", registry=registry)
        self.disk_size = Gauge("headrace_disk_size_bytes", "Size of the disk of the run's directory", registry=registry)
        self.dead_letters = Gauge("headrace_dead_letters_kept", "Records in the dead letters", registry=registry)
        self.stage = Gauge("headrace_stage", "Index of the stage under way", registry=registry)


class BrokerMetrics:
    """What a process does with the log."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._age = Gauge(
            "headrace_oldest_message_age_seconds",
            "Age of the oldest record that was taken and is not done",
            ["topic"],
            registry=registry,
        )
        errors = Counter("headrace_produce_errors", "Appends that failed", ["topic", "reason"], registry=registry)
        self.produce_errors = lru_cache(maxsize=64)(lambda topic, reason: errors.labels(topic, reason))
        size = Counter("headrace_bytes", "Bytes of record values", ["direction"], registry=registry)
        self.bytes_in, self.bytes_out = size.labels("in"), size.labels("out")
        self.unavailable = Gauge("headrace_log_unavailable", "1 while the log cannot be reached", registry=registry)
        self.dead_letters = Counter("headrace_dead_letters", "Records put into the dead letters", registry=registry)

    def track_oldest(self, topic: str, oldest: Callable[[], float]) -> None:
        """Have each scrape ask ``oldest`` when the oldest open record of ``topic`` was made (infinity: there is none)."""
        self._age.labels(topic).set_function(lambda: max(0.0, time.time() - oldest()))


class _BeforeScrape(Collector):
    """Has the time up to a scrape counted in that scrape, however long the piece of work under way is."""

    def __init__(self, count: Callable[[], None]) -> None:
        self._count = count

    def collect(self) -> Iterable[Metric]:
        self._count()
        return ()


class SystemMetrics:
    """How a daemon spends its time: what is not idle is busy, and the rate of idleness is the bubble.

    Every second since birth is counted once: to the innermost wait that is open, or as busy. Safe from any thread.
    """

    def __init__(self, registry: CollectorRegistry, role: str) -> None:
        Gauge(
            "headrace_clock_timestamp_seconds", "The daemon's own clock, seconds since the epoch", registry=registry
        ).set_function(time.time)
        registry.register(_BeforeScrape(self.busy))  # before the counters: collectors are asked in this order
        idle = Counter("headrace_idle_seconds", "Time spent waiting", ["role", "reason"], registry=registry)
        self._busy = Counter("headrace_busy_seconds", "Time spent working", ["role"], registry=registry).labels(role)
        self._idle = lru_cache(maxsize=32)(lambda reason: idle.labels(role, reason))
        self._lock = threading.Lock()
        self._waits: list[Counter] = []
        self._mark = time.monotonic()

    @contextlib.contextmanager
    def idle(self, reason: str) -> Iterator[None]:
        """The block waits for ``reason``; the time since the last such block was work."""
        counter = self._idle(reason)
        with self._lock:
            self._count()
            self._waits.append(counter)
        try:
            yield
        finally:
            with self._lock:
                self._count()
                self._waits.remove(counter)

    def busy(self) -> None:
        """Count the time up to now; call it in long stretches of work, so that a scrape in between sees them."""
        with self._lock:
            self._count()

    def waited(self, reason: str, seconds: float) -> None:
        """The last ``seconds`` were spent waiting for ``reason`` (no more than have not been counted yet)."""
        with self._lock:
            seconds = min(max(0.0, seconds), time.monotonic() - self._mark)
            self._idle(reason).inc(seconds)
            self._mark += seconds
            self._count()

    def _count(self) -> None:
        now = time.monotonic()
        (self._waits[-1] if self._waits else self._busy).inc(now - self._mark)
        self._mark = now
