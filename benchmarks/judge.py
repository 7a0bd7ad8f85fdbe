"""A rewarder in a program of its own whose judgements take a log-normal time, as a test suite in a sandbox does.

python benchmarks/judge.py RUN --median SECONDS --p99 SECONDS (0 0: at once). It judges any number of samples at a time.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import time
from pathlib import Path

from broker.messages import Trajectory, Vote, decode, encode
from broker.watermark import Watermark
from headrace.running.rundir import reopen
from monitoring.daemon import Stop

Z99 = 2.3263


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--median", type=float, default=0.0)
    parser.add_argument("--p99", type=float, default=0.0)
    options = parser.parse_args()
    run, stop, rng = reopen(options.run), Stop().install(), random.Random(0)
    log = run.open_log()
    consumer, producer = (
        log.consumer([run.topics.trajectories], run.topics.group("rewarder.judge"), "judge-0"),
        log.producer(),
    )
    sigma = math.log(options.p99 / options.median) / Z99 if options.median else 0.0
    mark, due = Watermark(), []  # type: ignore[var-annotated]
    while not stop:
        wait = max(0.0, min(0.05, due[0][0] - time.monotonic())) if due else 0.05
        for record in consumer.poll(256, wait):
            mark.start(record)
            latency = rng.lognormvariate(math.log(options.median), sigma) if options.median else 0.0
            heapq.heappush(due, (time.monotonic() + latency, record.partition, record.offset, record))
        finished = []
        while due and due[0][0] <= time.monotonic():
            record = heapq.heappop(due)[-1]
            sample = decode(record.value)
            assert isinstance(sample, Trajectory)
            if "judge" in sample.rewards:
                vote = Vote(sample.group_id, sample.index, "judge", "value", rng.random(), created=time.time())
                producer.send(run.topics.rewards, record.key, encode(vote))
            finished.append(record)
        if finished:
            producer.flush()
            for record in finished:
                mark.done(record)
            consumer.commit(mark.offsets())
    consumer.close()
    producer.close()
    log.close()


if __name__ == "__main__":
    main()
