"""What metrics cost: the calls that go with a sample and with a step, and a scrape, against the time that the ring takes for each.

The times of a sample and of a step are those of the tiny recipe (RESULTS.md): 96 tokens at 12,000 tokens a second, 2.5 s.
"""

from __future__ import annotations

from cputime import cpu
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from broker.messages import StepResult
from learner.telemetry import Telemetry
from monitoring.metrics import ActorMetrics, BrokerMetrics, RewarderMetrics, SystemMetrics

SAMPLE_SECONDS, STEP_SECONDS, SCRAPE_EVERY = 96 / 12_000, 2.5, 5.0
METRICS = dict.fromkeys(("loss", "grad_norm", "lr", "entropy", "kl_behavior", "ess_ratio", "clip_fraction_low", "clip_fraction_high", "importance_ratio_mean", "importance_ratio_max", "mismatch", "masked_fraction", "reward_mean", "reward/accuracy", "dropped/zero_variance", "zero_variance_group_ratio", "tokens_trained"), 0.5)  # fmt: skip


def main() -> None:
    registry = CollectorRegistry()
    actor, broker, system = ActorMetrics(registry), BrokerMetrics(registry), SystemMetrics(registry, "actor")

    def sampled() -> None:
        actor.generated_tokens.inc(96)
        actor.prompt_tokens.inc(32)
        actor.cached_prompt_tokens.inc(0)
        actor.generation_seconds.observe(0.7)
        actor.inflight.set(16)
        actor.weight_version.set(9)
        broker.bytes_out.inc(1500)
        broker.bytes_in.inc(300)
        broker.unavailable.set(0)
        system.waited("no_prompts", 0.0)

    rewarder = RewarderMetrics(CollectorRegistry(), "accuracy")

    def judged() -> None:
        rewarder.results("value").inc()
        rewarder.latency.observe(0.002)
        rewarder.reward.observe(1.0)
        rewarder.mean.set(0.5)
        broker.bytes_in.inc(1500)
        broker.bytes_out.inc(150)

    learner = CollectorRegistry()
    telemetry = Telemetry(learner)
    result = StepResult(9, 1, 8, METRICS, {"pack": 0.1, "forward_backward": 1.0, "optimizer": 0.1}, 0.0)

    def stepped() -> None:
        for phase in ("publish", "checkpoint"):
            with telemetry.phase(phase):
                pass
        with telemetry.waiting("wait_data"):
            pass
        telemetry.step(result)
        for _ in range(8 * 16):
            telemetry.metrics.staleness.observe(1)
            telemetry.metrics.response_length.observe(96)

    rows = [
        ("an actor, a sample", cpu(sampled, 2000), SAMPLE_SECONDS),
        ("a rewarder, a verdict (a sample's time)", cpu(judged, 2000), SAMPLE_SECONDS),
        ("the learner, a step of 128 samples", cpu(stepped, 50), STEP_SECONDS),
        ("a scrape of an actor", cpu(lambda: generate_latest(registry), 50), SCRAPE_EVERY),
        ("a scrape of the learner", cpu(lambda: generate_latest(learner), 50), SCRAPE_EVERY),
    ]
    print("| metrics of | us of CPU | of the time it goes with |\n|---|---|---|")
    for name, micros, whole in rows:
        print(f"| {name} | {micros:,.0f} | {micros / 1e6 / whole:.3%} |")


if __name__ == "__main__":
    main()
