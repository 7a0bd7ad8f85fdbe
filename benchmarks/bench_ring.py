"""The ring against the same parts one after another, against its own bound, and with judgements that take long.

The parts run one after another where ``max_lag = 0``: the learner waits for samples of the weights that it has just published,
and the actors wait for those weights. Everything else is the same.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from ringbench import Measured, measure

from broker.log import TopicSpec
from broker.messages import ChatMessage, Prompt, Sampling, Segment, Trajectory, VersionSpan, Vote, decode, encode
from broker.open import open_log

SYNCHRONOUS = ("learner.max_lag=0", "stage.1.steps=26")


def row(name: str, it: Measured, base: Measured) -> str:
    busy = " | ".join(f"{100 * it.busy[role]:.0f}%" for role in ("learner", "actor"))
    return f"| {name} | {it.step_seconds:.3f} | {busy} | {it.staleness:.2f} | {100 * base.step_seconds / it.step_seconds:.0f}% |"


def log_seconds(tokens: int) -> float:
    """CPU seconds that the records of a step cost: written once, read by learner, rewarder and judge, least of five rounds."""
    sample = trajectory(max(2, tokens))
    prompt = Prompt("sums-1@0", sample.messages, 16, "7", rewards={"judge": 1.0})
    vote = Vote("sums-1@0", 3, "judge", "value", 1.0, "7", 0.001, 1, 1.0)
    topics = {"prompts": (prompt, 16, 1), "trajectories": (sample, 256, 3), "rewards": (vote, 256, 1)}
    best = float("inf")
    with tempfile.TemporaryDirectory() as directory:
        log = open_log(f"sqlite://{directory}")
        log.create([TopicSpec(name, 8) for name in topics])
        producer = log.producer()
        readers = {name: [log.reader(name) for _ in range(readings)] for name, (_, _, readings) in topics.items()}
        for _ in range(5):
            start = time.process_time()
            for name, (message, count, _) in topics.items():
                for i in range(count):
                    producer.send(name, b"sums-1@0", encode(message), i % 8)
                    if i % 16 == 15:
                        producer.flush()
                for reader in readers[name]:
                    left = count
                    while left:
                        records = reader.poll(256, 1.0)
                        left -= len(records)
                        for record in records:
                            decode(record.value)
            best = min(best, time.process_time() - start)
        log.close()
    return best


def trajectory(tokens: int) -> Trajectory:
    spans = (Segment("prompt", 0, 20, False), Segment("assistant", 20, 20 + tokens, True))
    size = 20 + tokens
    return Trajectory(
        "sums-1@0", 3, 16, (ChatMessage("user", "Compute 3+7-2+9 mod 10."),), "7", "sums", {"terms": 4}, {"judge": 1.0}, "train",
        "x" * tokens, np.arange(size, dtype=np.int32), -np.ones(size, np.float32), spans, (VersionSpan(3, 20),), "stop", Sampling(),
    )  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        at_once = measure(Path(home) / "a")
        in_turn = measure(Path(home) / "b", SYNCHRONOUS)
        step = at_once.step_seconds
        slow = measure(Path(home) / "c", median=0.3 * step, p99=2 * step)
        slow_in_turn = measure(Path(home) / "d", SYNCHRONOUS, median=0.3 * step, p99=2 * step)
    print("256 answers a step, heavy-tailed lengths; one learner thread, one actor thread.\n")
    print("| ring | seconds a step | learner works | actor works | staleness | throughput |\n|---|---|---|---|---|---|")
    print(row("`max_lag = 8`, rewards at once", at_once, at_once))
    print(row("`max_lag = 8`, log-normal judgements: median 0.3 step, 99% 2 steps", slow, at_once))
    print(row("one after another (`max_lag = 0`), rewards at once", in_turn, at_once))
    print(row("one after another, log-normal judgements", slow_in_turn, at_once))
    bound = max(at_once.busy.values())
    print(
        f"\nOf the bound max(learner, actor): {100 * bound:.0f}%. Against one after another: {in_turn.step_seconds / step:.2f} times as fast."
    )
    print("\n| phase of the learner | ms a step |\n|---|---|")
    for name, seconds in sorted(at_once.phases.items(), key=lambda item: -item[1]):
        print(f"| {name} | {1000 * seconds:.1f} |")
    publish = at_once.phases.get("publish", 0.0)
    print(
        f"\nBlocked by publishing: {100 * publish / step:.2f}% of the time. CPU: {at_once.cpu_seconds:.2f} s a step, {at_once.tokens:.0f} tokens."
    )


if __name__ == "__main__":
    main()
