"""What the rewarders of the tiny ring cost beside the judging: CPU seconds a step of 16 x 16 samples, daemons and judging processes.

Samples come as actors publish them, a few at a time over the whole step; nothing else runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from broker.messages import ChatMessage, Sampling, Segment, Trajectory, VersionSpan, encode
from broker.open import open_log
from broker.topics import Topics

STEP_SECONDS, SAMPLES, PUBLISHES = 1.4, 256, 64
RUN = """
[run]
name = "w"
model = "none"
rewards = { accuracy = 1.0, format = 0.2 }
[rewarders.accuracy]
use = "rewarders.math:MathAccuracy"
[rewarders.format]
use = "rewarders.format:Format"
boxed = true
"""


def trajectory(number: int) -> Trajectory:
    tokens = 120
    spans = (Segment("prompt", 0, 20, False), Segment("assistant", 20, tokens, True))
    text = f"<think>3 + 7 is 10, and so on; it makes {number % 10}.</think><answer>\\boxed{{{number % 7}}}</answer>"
    return Trajectory(
        f"sums-{number // 16}@0", number % 16, 16, (ChatMessage("user", "Compute 3+7-2+9 mod 10."),), "7", "sums", {"terms": 4},
        {"accuracy": 1.0, "format": 0.2}, "train", text, np.arange(tokens, dtype=np.int32), -np.ones(tokens, np.float32), spans,
        (VersionSpan(3, 20),), "stop", Sampling(),
    )  # fmt: skip


def spent(daemons: list[subprocess.Popen[bytes]]) -> float:
    """CPU seconds of the daemons and of all that lives below them."""
    total = 0.0
    for daemon in daemons:
        process = psutil.Process(daemon.pid)
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "run.toml").write_text(RUN)
        topics, made = Topics("w"), 0
        log = open_log(f"sqlite://{home}/run/log")
        log.create(topics.specs())
        producer = log.producer()

        def publish(count: int) -> None:
            nonlocal made
            for _ in range(count):
                sample = trajectory(made)
                producer.send(topics.trajectories, sample.group_id.encode(), encode(sample))
                made += 1
            producer.flush()

        def voted() -> int:
            return sum(log.ends(topics.rewards).values())

        def wait_for_votes() -> None:
            deadline = time.monotonic() + 60
            while voted() < 2 * made:
                time.sleep(0.01)
                if time.monotonic() > deadline:
                    raise SystemExit(f"{voted()} votes on {made} samples")

        daemons = [
            subprocess.Popen([sys.executable, "-m", "rewarders", f"{home}/run.toml", "--dir", f"{home}/run", "--rewarder", name])
            for name in ("accuracy", "format")
        ]  # fmt: skip
        try:
            publish(SAMPLES)
            wait_for_votes()
            before, mark, lags = spent(daemons), time.monotonic(), []
            for _ in range(steps):
                for _ in range(PUBLISHES):
                    publish(SAMPLES // PUBLISHES)
                    mark += STEP_SECONDS / PUBLISHES
                    time.sleep(max(0.0, mark - time.monotonic()))
                begun = time.monotonic()
                wait_for_votes()
                lags.append(time.monotonic() - begun)
            used = (spent(daemons) - before) / steps
            print(f"{used:.3f} CPU s a step of both rewarders; the last vote comes {1e3 * sorted(lags)[steps // 2]:.0f} ms after the last sample")  # fmt: skip
            before = spent(daemons)
            time.sleep(5)
            print(f"{(spent(daemons) - before) / 5:.3f} of a core with nothing to judge")
        finally:
            for daemon in daemons:
                daemon.terminate()
            for daemon in daemons:
                daemon.wait(20)
        log.close()


if __name__ == "__main__":
    main()
