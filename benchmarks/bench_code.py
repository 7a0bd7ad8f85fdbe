"""Programs judged a second in the sandbox, what a start costs, and how many hostile programs are held, here and without one of its layers.

python benchmarks/bench_code.py [--processes 2] [--seconds 10]
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from answercases import sample

from broker.sandbox import Sandbox
from broker.sandbox.command import place
from broker.sandbox.selftest import self_test
from broker.sandbox.watch import Watch
from rewarders.code import CodeTests

SUMS = [{"input": f"{n} {n + 1}\n", "output": f"{2 * n + 1}\n"} for n in range(10)]
PRINTS = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
CALLS = "```python\nclass Solution:\n    def add(self, a: int, b: int) -> int:\n        return a + b\n```"
COMPILED = (
    "```cpp\n#include <iostream>\nint main() { long a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }\n```"
)
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "Python, 10 tests, reads and prints": (PRINTS, {"tests": SUMS}),
    "Python, 10 tests, a function": (CALLS, {"tests": [{"input": [n, 1], "output": n + 1} for n in range(10)], "function": "add"}),
    "C++, 10 tests": (COMPILED, {"tests": SUMS, "language": "cpp"}),
}  # fmt: skip


def processor() -> float:
    """Seconds of processor time of this process and all that it has waited for, sandboxes included."""
    return sum(r.ru_utime + r.ru_stime for r in (getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN)))


def judge(text: str, metadata: dict[str, object], seconds: float) -> tuple[int, float]:
    """Submissions judged in this process within ``seconds``, after the self-test, and the processor time that they took."""
    rewarder, asked = CodeTests(total=60.0), sample(text, None, metadata=metadata)
    rewarder(asked)
    count, end, begun = 0, time.monotonic() + seconds, processor()
    while time.monotonic() < end:
        verdict = rewarder(asked)
        assert verdict is not None and verdict.value == 1.0, verdict
        count += 1
    return count, processor() - begun


def rate(text: str, metadata: dict[str, object], processes: int, seconds: float) -> tuple[float, float]:
    """Submissions a second, and milliseconds of processor time each."""
    with get_context("spawn").Pool(processes) as pool:
        told = pool.starmap(judge, [(text, metadata, seconds)] * processes)
    return sum(n for n, _ in told) / seconds, 1000 * sum(s for _, s in told) / max(1, sum(n for n, _ in told))


def start_milliseconds(times: int = 30) -> list[float]:
    out = []
    for _ in range(times):
        begun = time.perf_counter()
        with Sandbox().open():
            out.append(1000 * (time.perf_counter() - begun))
    return out


def held() -> str:
    told = self_test()
    lost = [h.name for h in told if h.why]
    return f"{len(told) - len(lost)}/{len(told)}" + (f" (not: {', '.join(lost)})" if lost else "")


def without_filter() -> str:
    with mock.patch("broker.sandbox.session.seccomp_filter", lambda: struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)):
        return held()


def without_watch() -> str:
    with mock.patch.object(Watch, "look", lambda self: None):
        return held()


LAYERS: dict[str, Callable[[], str]] = {
    "all": held, "without the filter of system calls": without_filter, "without the watch": without_watch,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    kind = "a user of its own" if place().privileged else "a user namespace"
    starts = start_milliseconds()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores before; {kind}")
    print(f"start: median {statistics.median(starts):.0f} ms, worst of {len(starts)} {max(starts):.0f} ms\n")
    print(
        f"| submissions | a second, {options.processes} processes | processor ms each | a second that these allow on 2 idle cores |\n|---|---|---|---|"
    )
    for name, (text, metadata) in KINDS.items():
        rates, cost = rate(text, metadata, options.processes, options.seconds)
        print(f"| {name} | {rates:.1f} | {cost:.0f} | {2000 / cost:.0f} |", flush=True)
    print("\n| layers | hostile programs held |\n|---|---|")
    for name, look in LAYERS.items():
        print(f"| {name} | {look()} |", flush=True)
    rewarded = [name for name, value in CodeTests().cheats().items() if value and name != "control"]
    print(f"\ncheats rewarded: {len(rewarded)} of {len(CodeTests().cheats()) - 1}; load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
