"""Declares every metric of the project, each once and in one row: name, type, buckets, unit (base units; counters end
in ``_total``).

Each process has one registry, and each registry one role: an actor and a learner both have a ``weight_version``. A
class holds the metrics of one role with their labels already looked up, so that a call site is one line. Labels have
low cardinality: never the id of a prompt or a trajectory. docs/metrics.md lists all metrics (``python -m
monitoring.catalogue``).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from monitoring.rows import Metrics, Row, counter, counters, gauge, gauges, histogram, histograms
from monitoring.timekeeping import SystemMetrics

__all__ = [
    "ROLES", "ActorMetrics", "BrokerMetrics", "LearnerMetrics", "RewarderMetrics", "RunMetrics", "StepMetrics", "SystemMetrics",
]  # fmt: skip

GENERATION_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)
REWARDER_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 60)
REWARD = (-1, -0.5, -0.1, 0, 0.1, 0.25, 0.5, 0.75, 0.9, 1, 2)
STALENESS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 32)
RATIO = (0.1, 0.5, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 2, 5, 10)
LENGTH = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
PHASE_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)

IN_CLIP = "the policy may stay inside the clip"
STAGE_OVER = "the RL stage may be over at the moment of the scrape"


class ActorMetrics(Metrics):
    """What one actor generates."""

    generated_tokens = counter("generated_tokens", "Response tokens generated")
    inflight = gauge(
        "inflight_requests", "Samples being generated", may_be_zero="the actor may be idle at the moment of the scrape"
    )
    slots = gauge("slots", "Samples that are kept in flight at most, for each server of an engine")
    weight_version = gauge("weight_version", "Policy version that is sampled from")
    generation_seconds = histogram("generation_seconds", "From admission of a sample to its end", GENERATION_SECONDS)
    update_seconds = histogram("weight_update_seconds", "Taking in one set of weights", PHASE_SECONDS)
    prompt_tokens = counter("prompt_tokens", "Tokens that stood before a reply, of every turn")
    cached_prompt_tokens = counter(
        "cached_prompt_tokens", "Prompt tokens that an engine took from its prefix cache",
        may_be_zero="groups of one sample share nothing",
    )  # fmt: skip
    environment_seconds = histogram(
        "environment_seconds", "From a call of an environment to its answer, waiting for its process included", REWARDER_SECONDS,
        may_be_zero="a run need not have environments",
    )  # fmt: skip
    aborted = counters(
        "aborted", "Samples that did not end by themselves", "reason",
        may_be_zero="no sample is aborted by an update that keeps them",
    )  # fmt: skip


class RewarderMetrics(Metrics):
    """What one rewarder judges."""

    latency: Row[Histogram] = Row(Histogram, "latency_seconds", "One judgement", ("rewarder",), REWARDER_SECONDS)
    reward: Row[Histogram] = Row(Histogram, "reward", "Values given", ("rewarder",), REWARD)
    mean: Row[Gauge] = Row(Gauge, "reward_recent_mean", "Moving mean of the values given", ("rewarder",))
    results = counters("results", "Verdicts", "rewarder", "outcome")
    causes = counters(
        "judge_failures", "Verdicts behind a failure: time-out, kill, error, outage", "rewarder", "cause",
        may_be_zero="no judge fails",
    )  # fmt: skip
    outage: Row[Gauge] = Row(
        Gauge, "rewarder_outage", "1 while samples are held because the judge cannot be reached", ("rewarder",),
        may_be_zero="every judge can be reached",
    )  # fmt: skip
    restarts: Row[Counter] = Row(
        Counter,
        "worker_restarts",
        "Judging processes ended and started again",
        ("rewarder",),
        may_be_zero="no judge dies",
    )
    skipped: Row[Counter] = Row(
        Counter, "skipped_records", "Records that no verdict is due on", ("rewarder",),
        may_be_zero="every sample's mix names the rewarder",
    )  # fmt: skip
    degraded: Row[Gauge] = Row(
        Gauge, "sandbox_degraded", "1 while the sandbox fails its self-test", ("rewarder",),
        may_be_zero="a sandbox is asked for by few rewarders, and passes its self-test",
    )  # fmt: skip

    def __init__(self, registry: CollectorRegistry, rewarder: str) -> None:
        super().__init__(registry, rewarder=rewarder)


class StepMetrics(Metrics):
    """Metrics that a step of the learner sets; each row's ``key`` is the name of the value in the step's result in the
    log.
    """

    tokens = counter("tokens", "Response tokens trained", key="tokens_trained")
    dropped_groups = counters(
        "dropped_groups",
        "Groups that ended untrained",
        "reason",
        key="dropped/*",
        may_be_zero="no group need be dropped",
    )
    importance_ratio = histogram("importance_ratio", "Mean of pi/mu of a step", RATIO, key="importance_ratio_mean")
    importance_ratio_max = gauge("importance_ratio_max", "Largest pi/mu of the last step", key="importance_ratio_max")
    clip_fraction = gauges(
        "clip_fraction", "Share of tokens clipped or masked", "side", key="clip_fraction_*", always=("low", "high", "dual"),
        may_be_zero=IN_CLIP,
    )  # fmt: skip
    masked_fraction = gauge(
        "masked_fraction", "Share of tokens without a gradient", key="masked_fraction", may_be_zero=IN_CLIP
    )
    mismatch = gauge(
        "engine_mismatch", "Mean |log pi - log mu| of tokens of staleness 0, nats", key="mismatch",
        may_be_zero="a step need not hold a token of staleness 0",
    )  # fmt: skip
    kl = gauge("kl", "k3 divergence between behaviour and policy", key="kl_behavior")
    entropy = gauge("entropy", "Entropy of the policy, nats a token", key="entropy")
    loss = gauge("loss", "Loss of the last step", key="loss")
    learning_rate = gauge("learning_rate", "Learning rate of the last step", key="lr")
    reward_mean = gauge("reward_mean", "Mean reward of the groups judged for the last step", key="reward_mean")
    rewarder_mean = gauges(
        "rewarder_reward_mean", "Mean value of a rewarder in the last step", "rewarder", key="reward/*"
    )
    grad_norm = gauge("grad_norm", "Gradient norm before clipping", key="grad_norm")
    ess_ratio = gauge("ess_ratio", "Effective sample size over sample size", key="ess_ratio")
    shadow_mean = gauges(
        "shadow_reward_mean", "Mean value of a shadow, which is not trained on, since the step before", "rewarder", key="shadow/*",
        may_be_zero="no rewarder is a shadow",
    )  # fmt: skip
    zero_variance_group_ratio = gauge(
        "zero_variance_group_ratio", "Share of groups without a gradient", key="zero_variance_group_ratio",
        may_be_zero="rewards may differ in every group",
    )  # fmt: skip
    odd_documents = gauge(
        "odd_documents", "Documents of the stage that cannot be trained on and were left out", key="odd_documents",
        may_be_zero="every document can be trained on",
    )  # fmt: skip
    activation_memory = gauge(
        "activation_memory_bytes", "What the forward pass of a chunk holds for its backward pass, the most of a step",
        key="activation_memory_bytes",
    )  # fmt: skip
    parameter_bytes = gauge("parameter_bytes", "Size of the learner's model", key="parameter_bytes")
    trained_parameter_bytes = gauge(
        "trained_parameter_bytes", "Size of the parameters that take a gradient", key="trained_parameter_bytes"
    )
    optimizer_state = gauge(
        "optimizer_state_bytes", "Size of the optimizer's state, wherever it lies", key="optimizer_state_bytes"
    )


class LearnerMetrics(StepMetrics):
    """What the learner trains."""

    step_phase = histograms("step_phase_seconds", "Parts of a step", PHASE_SECONDS, "phase")
    phase_since = gauges(
        "phase_since_timestamp_seconds",
        "When the learner entered a phase that it is in, seconds since the epoch; 0 while it is not", "phase",
        may_be_zero="the learner computes most of the time, which is no phase of its own",
    )  # fmt: skip
    steps = counter("steps", "Optimizer steps")
    weight_version = gauge("weight_version", "Newest policy version")
    staleness = histogram("staleness_versions", "Versions between sampling and training", STALENESS)
    response_length = histogram("response_length_tokens", "Mean response length of a step", LENGTH)
    broadcast_seconds = histogram("weight_broadcast_seconds", "One push of weights to all receivers", PHASE_SECONDS)
    shift_seconds = histogram(
        "shift_seconds", "One shift of the learner on devices that it shares with engines", PHASE_SECONDS,
        may_be_zero="engine and learner have devices of their own",
    )  # fmt: skip
    checkpoint_seconds = histogram("checkpoint_seconds", "Writing one checkpoint", PHASE_SECONDS)
    evictions = counters(
        "broadcast_evictions", "Receivers that did not answer a push", "member", may_be_zero="every receiver answers"
    )
    epochs = counter("membership_epochs", "Broadcast groups formed anew")
    receivers = gauge("weight_receivers", "Receivers of weights that are alive")
    outstanding = gauge("outstanding_groups", "Groups that are fed but not ended")
    duplicates = gauge(
        "duplicate_records", "Redelivered samples and votes that were left aside since the learner began",
        may_be_zero="a record is delivered twice only after a process has died",
    )  # fmt: skip
    credits = gauge(
        "credits", "Groups that may be outstanding at once (0: no RL stage is under way)", may_be_zero=STAGE_OVER
    )
    max_lag = gauge("max_lag_versions", "Largest staleness that is trained", may_be_zero=STAGE_OVER)
    groups = counters("groups", "Groups that ended", "fate")
    asked_again = counter(
        "groups_asked_again",
        "Groups whose samples were lost, and that were asked for again",
        may_be_zero="no sample is lost",
    )
    away_since = gauges(
        "rewarder_away_since_timestamp_seconds",
        "When a rewarder that holds its samples said so first, seconds since the epoch; 0 while it is in order", "rewarder",
        may_be_zero="every judge can be reached",
    )  # fmt: skip
    reward_gap = gauges(
        "reward_gap",
        "By how much a rewarder's mean has risen over the last evaluations while held-out accuracy or a shadow has fallen, rise and fall added up",
        "rewarder", may_be_zero="no rewarder is gamed",
    )  # fmt: skip
    last_step = gauge("last_step_timestamp_seconds", "When the last step ended, seconds since the epoch")
    stage_begin = gauge("stage_begin_timestamp_seconds", "When the stage began, seconds since the epoch")
    usual_step = gauge(
        "usual_step_seconds", "Median time of the stage's last steps (0: none yet)", may_be_zero=STAGE_OVER
    )
    pass_at_1 = gauge(
        "pass_at_1", "Held-out pass@1 of the last evaluation", may_be_zero="an answer of vowels alone is rare"
    )
    cons_at_k = gauge(
        "cons_at_k", "Held-out majority vote of the last evaluation", may_be_zero="an answer of vowels alone is rare"
    )
    gpu_memory = gauges("gpu_memory_bytes", "Device memory", "kind", may_be_zero="there is no GPU")


class RunMetrics(Metrics):
    """What only an outside observer can see: which daemons are alive, how far groups lag, how full the disk is."""

    lag = gauges(
        "consumer_lag_messages", "Records behind a group's committed offsets", "group", "topic",
        may_be_zero="nobody need be behind at the moment of the scrape",
    )  # fmt: skip
    up = gauges("daemon_up", "1 while the daemon runs", "daemon", "role")
    restarts = counters(
        "daemon_restarts", "Ends that a restart followed", "daemon", "role", may_be_zero="no daemon has died"
    )
    disk_free = gauge("disk_free_bytes", "Room on the disk of the run's directory")
    disk_size = gauge("disk_size_bytes", "Size of the disk of the run's directory")
    dead_letters = gauge("dead_letters_kept", "Records in the dead letters", may_be_zero="there are no dead letters")
    stage = gauge("stage", "Index of the stage under way", may_be_zero="0 is the first stage")


class BrokerMetrics(Metrics):
    """What a process does with the log."""

    oldest_age = gauges(
        "oldest_message_age_seconds", "Age of the oldest record that was taken and is not done", "topic",
        may_be_zero="nothing need be open at the moment of the scrape",
    )  # fmt: skip
    produce_errors = counters("produce_errors", "Appends that failed", "topic", "reason", may_be_zero="no append fails")
    bytes = counters("bytes", "Bytes of record values", "direction")
    unavailable = gauge("log_unavailable", "1 while the log cannot be reached", may_be_zero="the log is there")
    dead_letters = counter("dead_letters", "Records put into the dead letters", may_be_zero="there are no dead letters")

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.bytes_in, self.bytes_out = self.bytes("in"), self.bytes("out")

    def track_oldest(self, topic: str, oldest: Callable[[], float]) -> None:
        """Have each scrape call ``oldest``: when the oldest open record of ``topic`` was made, in seconds since the
        epoch (infinity: none).
        """
        self.oldest_age(topic).set_function(lambda: max(0.0, time.time() - oldest()))


ROLES: dict[str, tuple[type[Metrics], ...]] = {
    "actor": (ActorMetrics, BrokerMetrics, SystemMetrics),
    "rewarder": (RewarderMetrics, BrokerMetrics, SystemMetrics),
    "learner": (LearnerMetrics, BrokerMetrics, SystemMetrics),
    "supervisor": (RunMetrics,),
}
"""The metrics that a daemon of each role serves."""
