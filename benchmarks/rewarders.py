"""How fast, how right and how large the rewarders are: one row each, written as Markdown.

python benchmarks/rewarders.py [NAME ...] [--seconds 10] [--out benchmarks/rewarders.md]. A rewarder is added by one line of ``REWARDERS``: a name,
how it is made, and its cases (sample, right or wrong, or None where only time counts).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from answercases import math_cases, sample  # noqa: E402

from broker.messages import Trajectory  # noqa: E402
from rewarders.rewarder import Rewarder  # noqa: E402

Case = tuple[Trajectory, bool | None]
FRESH = (
    "The fresh set (78 cases) and the second set (84) were written after the reader was done, and measured once before anything was changed for them: "
    ".987 and .976. They have been corrected since, so the figures above are those of a set that has been looked at."
)
PACKAGES = ("math-verify", "latex2sympy2-extended", "sympy", "mpmath", "reasoning-gym")


class Entry(NamedTuple):
    make: Callable[[], Rewarder]
    cases: Callable[[], Iterator[Case]]


def mathematics() -> Rewarder:
    from rewarders.math import MathAccuracy

    return MathAccuracy()


def choice() -> Rewarder:
    from rewarders.choice import Choice

    return Choice()


def gym() -> Rewarder:
    from rewarders.reasoning_gym import ReasoningGym

    return ReasoningGym()


def mixed(name: str) -> Callable[[], Iterator[Case]]:
    return lambda: ((sample(c.response, c.reference), c.right) for c in math_cases(name))


def symbolic() -> Iterator[Case]:
    """References that only math-verify reads."""
    for n in range(1, 9):
        yield sample(f"\\boxed{{\\frac{{1}}{{{n + 1}}}}}", f"\\int_0^1 x^{n} dx"), True
        yield sample(f"\\boxed{{\\frac{{1}}{{{n + 2}}}}}", f"\\int_0^1 x^{n} dx"), False


def options() -> Iterator[Case]:
    gases = {"options": ["Oxygen", "Nitrogen", "Carbon dioxide", "Argon"]}
    for answer, right in (
        ("C", True),
        ("(C)", True),
        ("Carbon dioxide", True),
        ("C) Carbon dioxide", True),
        ("A or C", False),
        ("B", False),
        ("x" * 900, False),
    ):
        yield sample(f"<think>t</think>\\boxed{{{answer}}}", "C", metadata=gases), right


def puzzles() -> Iterator[Case]:
    import reasoning_gym

    for task in ("countdown", "knights_knaves", "maze", "mini_sudoku", "zebra_puzzles", "gcd"):
        for entry in reasoning_gym.create_dataset(task, size=3, seed=1):
            carried = {"dataset": task, "entry": json.loads(json.dumps(entry, default=str)), "tuples": []}
            yield sample(f"<answer>{entry['answer']}</answer>", None, metadata={"reasoning_gym": carried}), None
            yield sample("<answer>nothing</answer>", None, metadata={"reasoning_gym": carried}), False


REWARDERS: dict[str, Entry] = {
    "MathAccuracy, mixed set": Entry(mathematics, mixed("math_cases.txt")),
    "MathAccuracy, fresh set": Entry(mathematics, mixed("math_cases_fresh.txt")),
    "MathAccuracy, second set": Entry(mathematics, mixed("math_cases_second.txt")),
    "MathAccuracy, math-verify only": Entry(mathematics, symbolic),
    "Choice": Entry(choice, options),
    "ReasoningGym, six tasks": Entry(gym, puzzles),
}


def judged(name: str, seconds: float, queue: Any) -> None:
    """One process: the cases again and again; times in seconds, how many verdicts were right, memory in MiB."""
    entry = REWARDERS[name]
    judge, cases = entry.make(), list(entry.cases())
    for sample_, _ in cases:  # imports, and processes that start
        judge(sample_)
    times: list[float] = []
    right = known = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < len(cases):
        for sample_, wanted in cases:
            started = time.perf_counter()
            verdict = judge(sample_)
            times.append(time.perf_counter() - started)
            if len(times) <= len(cases) and wanted is not None:
                known += 1
                right += (getattr(verdict, "value", verdict) == 1.0) == wanted
    took = time.perf_counter() - began
    me = psutil.Process()
    memory = [p.memory_info().rss / 2**20 for p in (me, *me.children(recursive=True))]
    queue.put((times, took, right, known, memory))


def measured(name: str, processes: int, seconds: float) -> list[Any]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    running = [context.Process(target=judged, args=(name, seconds, queue)) for _ in range(processes)]
    for process in running:
        process.start()
    results = [queue.get(timeout=600) for _ in running]
    for process in running:
        process.join()
    return results


def row(name: str, seconds: float) -> str:
    one, two = measured(name, 1, seconds), measured(name, 2, seconds)
    times, _, right, known, memory = one[0]
    times.sort()
    rates = [sum(len(r[0]) / r[1] for r in results) for results in (one, two)]
    shares = [times[len(times) // 2], times[int(len(times) * 0.99)], times[-1]]
    accuracy = f"{right / known:.3f} of {known}" if known else "-"
    sizes = " + ".join(f"{m:.0f}" for m in memory)
    return f"| {name} | {accuracy} | {rates[0]:,.0f} | {rates[1]:,.0f} | {' / '.join(f'{1000 * s:.2f}' for s in shares)} | {sizes} |"


def bomb() -> str:
    """What a comparison that never ends costs: the clock until the next verdict of the same process."""
    from rewarders.math import MathAccuracy

    judge = MathAccuracy()
    hard, easy = "\\int_0^x \\frac{\\sin^5 t\\,\\ln t}{t^3+\\cos t} dt", sample("\\boxed{\\frac13}", "\\int_0^1 x^2 dx")
    judge(easy)
    judge(sample("\\boxed{1}", hard))
    costs, causes = [], set()
    slow = contention()
    for n in range(9):
        started = time.perf_counter()
        verdict = judge(sample(f"\\boxed{{{n}+\\heartsuit}}", hard))
        judge(easy)
        costs.append(time.perf_counter() - started)
        causes.add(verdict.cause if verdict else "")
    slow = (slow + contention()) / 2
    return (
        f"A comparison that does not end costs its process {1000 * sorted(costs)[4]:.0f} ms of the clock (median of nine, worst {1000 * max(costs):.0f} ms), "
        f"the next verdict included (cause: {', '.join(sorted(causes))}), where a second of the processor takes {slow:.1f} s."
    )


def contention() -> float:
    """Seconds of the clock that a second of the processor takes on this machine now."""
    started, spent = time.perf_counter(), time.process_time()
    while time.process_time() - spent < 1.0:
        pass
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="of REWARDERS; all by default")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    options_ = parser.parse_args()
    lines = [
        "# Rewarders: speed, accuracy, memory", "", "Written by `python benchmarks/rewarders.py --out benchmarks/rewarders.md`.", "",
        "| rewarder | right | verdicts/s, 1 process | 2 processes | p50 / p99 / worst ms | RSS MiB, judge + its children |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [row(name, options_.seconds) for name in options_.names or REWARDERS]
    lines += ["", bomb(), "", FRESH, ""]
    lines += [
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; a second of the processor takes {contention():.1f} s of the clock; "
        + ", ".join(versions())
        + ".",
    ]
    text = "\n".join(lines) + "\n"
    if options_.out:
        options_.out.write_text(text)
    print(text)


def versions() -> Iterator[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} is not installed"


if __name__ == "__main__":
    main()
