"""What records cost: codec, append, read, and the time from one process to another. Ratios within one run matter, not the machine."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from cputime import cpu

from broker.log import TopicSpec
from broker.messages import ChatMessage, Sampling, Segment, Trajectory, VersionSpan, decode, encode
from broker.open import open_log

TOKENS, RECORDS = 2000, 2000


def trajectory() -> Trajectory:
    spans = (Segment("prompt", 0, 20, False), Segment("assistant", 20, TOKENS, True))
    return Trajectory(
        "sums-1@0", 3, 16, (ChatMessage("user", "hi"),), "7", "math", {"a": 1}, {"accuracy": 1.0}, "train", "x" * 4000,
        np.arange(TOKENS, dtype=np.int32), -np.ones(TOKENS, np.float32), spans, (VersionSpan(3, 20),), "stop", Sampling(),
    )  # fmt: skip


def main() -> None:
    sample = trajectory()
    data = encode(sample)
    print(f"| a trajectory of {TOKENS} tokens, {len(data)} bytes | us of CPU |\n|---|---|")
    print(f"| encode | {cpu(lambda: encode(sample), 2000):.1f} |")
    print(f"| decode and check | {cpu(lambda: decode(data), 2000):.1f} |")
    with tempfile.TemporaryDirectory() as directory:
        log = open_log(f"sqlite://{Path(directory)}")
        log.create([TopicSpec("t", 8)])
        producer = log.producer()

        def append() -> None:
            for i in range(16):
                producer.send("t", b"k", data, i % 8)
            producer.flush()

        print(f"| append, 16 a flush | {cpu(append, RECORDS // 16) / 16:.1f} |")
        reader = log.reader("t")

        def read() -> None:
            reader.seek(dict.fromkeys(range(8), 0))
            count = 0
            while count < RECORDS:
                count += len(reader.poll(256, 0.0))

        print(f"| read | {cpu(read, 1) / RECORDS:.1f} |")
        waits = []
        tail = log.reader("t", log.ends("t"))
        for _ in range(200):
            producer.send("t", b"k", data, 0)
            start = time.perf_counter()
            producer.flush()
            while not tail.poll(16, 1.0):
                pass
            waits.append((time.perf_counter() - start) * 1e3)
        print(f"\nfrom flush to poll: median {np.median(waits):.2f} ms, 99% {np.percentile(waits, 99):.2f} ms")
        producer.close()
        log.close()


if __name__ == "__main__":
    main()
