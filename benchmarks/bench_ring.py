"""How well a finished run overlapped: its step time against the larger of what its learner and its actors needed.

python benchmarks/bench_ring.py runs/tiny
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

from broker.messages import StepResult, Trajectory
from headrace.records import scan
from headrace.rundir import reopen


def main(directory: Path) -> None:
    run = reopen(directory)
    log = run.open_log()
    steps = [m for _, m in scan(log, run.topics.steps) if isinstance(m, StepResult) and "staleness_mean" in m.metrics]
    tokens = sum(
        m.response_tokens
        for _, m in scan(log, run.topics.trajectories)
        if isinstance(m, Trajectory) and m.purpose == "train"
    )
    log.close()
    if not steps:
        sys.exit(f"{directory} has no reinforcement learning step")
    seconds = [r.metrics["step_seconds"] for r in steps]
    busy = [sum(v for k, v in r.phases.items() if k != "wait_data") for r in steps]
    publish = sum(r.phases.get("publish", 0.0) for r in steps)
    print("| of a step | seconds (median) |\n|---|---|")
    print(f"| wall | {median(seconds):.3f} |\n| learner busy | {median(busy):.3f} |")
    for name in ("wait_data", "pack", "forward_backward", "optimizer", "publish", "checkpoint"):
        print(f"| {name} | {median(r.phases.get(name, 0.0) for r in steps):.3f} |")
    print(f"\nlearner blocked by publishing: {100 * publish / sum(seconds):.2f}% of the time")
    print(
        f"learner busy: {100 * sum(busy) / sum(seconds):.0f}% of the time; {tokens} training tokens generated in {len(steps)} steps"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tiny"))
