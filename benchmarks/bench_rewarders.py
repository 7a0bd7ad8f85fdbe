"""Verdicts a second of every rewarder of the package on one core and on two, what mathematics takes case by case, and what a bomb costs.

python benchmarks/bench_rewarders.py [--seconds 3] [--only NAME ...] [--write]: ``--write`` puts the tables into benchmarks/rewarders.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "rewarders"))

from answercases import Case, math_cases, sample
from everyone import CASES, HERE, Needs
from spoken import group

from broker.messages import encode
from rewarders.config import RewarderTable
from rewarders.judges import isolated
from rewarders.registry import judge_factory

PAGE = Path(__file__).parent / "rewarders.md"
MARK = "<!-- what follows is written by bench_rewarders.py -->\n"
SIZE = 16  # samples of a group
MATH = RewarderTable.model_validate({"use": "rewarders.math:MathAccuracy", "worker": {}})
FRESH = (
    "The fresh and the second set were written after the reader was done, and measured once before anything was changed for them: .987 and .976. They "
    "have been corrected since, so the figures above are those of sets that have been looked at."
)
THOUGHT = (
    "We are asked for the sum of two and three. Let me think about it step by step: 2+3 means that we begin at two and count three "
    "further, so we pass 3 and 4 and come to $5$. Wait, let me check this once more with `2 + 3 == 5`, which is true. "
)
RESPONSE = f"<think>{THOUGHT * 5}</think>\n<answer>The sum is five: \\boxed{{5}}</answer>"
PROGRAM = "<think>Read both, print the sum.</think>\n```python\na, b = map(int, input().split())\nprint(a + b)\n```"
TEXTS: Mapping[str, Sequence[str]] = {
    "choice": (RESPONSE.replace("{5}", "{B}"), RESPONSE.replace("{5}", "{C) none}")),
    "code": (PROGRAM,),
    "reasoning gym": ("<think>easy</think><answer>1+2</answer>", "<answer>2+2</answer>"),
    "reward model": tuple(f"<think>so</think>The sum is {n}, as one sees." for n in range(SIZE)),
}
BOMBS = [
    ("5", "9^{9^{9^9}}"), ("5", "99999999!"), ("5", "\\binom{999999999}{500000000}"), ("x", "(1+x)^{100000}"),
    ("5", "\\sum_{k=1}^{999999999999} \\frac{1}{k}"), ("5", "\\sqrt{" * 200 + "2" + "}" * 200), ("5", "1" * 1000 + "/" + "7" * 20),
    ("\\int_0^1 x^2 dx", "\\int_0^1 \\frac{\\sin(x^x)}{\\ln(1+e^{x^3})} dx"), ("\\int_0^1 x^2 dx", "\\int e^{x^2} \\sin(x^3) \\tan(x) dx"),
    ("\\int_0^1 x^2 dx", "\\lim_{x\\to 0} (\\frac{\\sin x}{x})^{\\frac{1}{x^{9}}}"), ("\\int_0^1 x^2 dx", "\\prod_{k=1}^{99999} k"),
    ("\\int_0^1 x^2 dx", "(x+y+z+w)^{300}"), ("\\int_0^1 x^2 dx", "(x+y+z)^{50}(x-y)^{50}(y-z+w)^{50}"), ("\\int_0^1 x^2 dx", "10^{999999999}"), ("\\int_0^x \\frac{\\sin^5 t\\,\\ln t}{t^3+\\cos t} dt", "7+\\heartsuit"), ("\\int_0^1 x^2 dx", "\\sum_{n=1}^{\\infty} \\frac{1}{n^7+n^3+1}"),
]  # fmt: skip


@dataclass(frozen=True)
class Rate:
    verdicts: float  # a second
    milliseconds: float  # of the processor, for one, children included


def spent(process: psutil.Process) -> float:
    """CPU seconds of a process and of all that lives, or has lived, below it."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        total += sum(one.cpu_times()[:4])
    return total


def payloads(name: str) -> list[bytes]:
    """The encoded samples that a rewarder is timed on."""
    case = CASES[name]
    if name.startswith("math"):
        cases = [c for c in math_cases() if c.kind != "hostile"]
        random.Random(0).shuffle(cases)
        return [encode(sample(c.response, c.reference)) for c in cases]
    texts = TEXTS.get(name, (RESPONSE,))
    texts = [texts[i % len(texts)] for i in range(SIZE)]
    fields: dict[str, Any] = {"answer": case.answer, "metadata": dict(case.metadata)}
    return [encode(s) for s in group(texts, [120] * SIZE, **fields)]


def judge(name: str, options: dict[str, Any], seconds: float) -> tuple[int, float, float]:
    """Verdicts in this process within about ``seconds``, those seconds, and the processor time that they took."""
    handler = judge_factory({"use": CASES[name].use, "options": options, "base": HERE})
    found = payloads(name)
    batches = [found] if handler.about["per_group"] else [[one] for one in found]
    handler(batches[0])
    me, count, number = psutil.Process(), 0, 0
    begun, worked = time.monotonic(), spent(me)
    while (passed := time.monotonic() - begun) < seconds:
        count += len(handler(batches[number % len(batches)]))
        number += 1
    return count, passed, spent(me) - worked


def rate(name: str, options: dict[str, Any], processes: int, seconds: float) -> Rate:
    with get_context("spawn").Pool(processes) as pool:
        told = pool.starmap(judge, [(name, options, seconds)] * processes)
    return Rate(sum(n / s for n, s, _ in told), 1000 * sum(cpu for _, _, cpu in told) / sum(n for n, _, _ in told))


def rates(names: Sequence[str], needs: Needs, seconds: float) -> Iterator[str]:
    yield "| rewarder | verdicts/s, 1 process | 2 processes | processor ms a verdict | verdicts/s that these allow on 2 idle cores |\n|---|---|---|---|---|"
    for name in names:
        options = dict(CASES[name].options(needs))
        one, two = (rate(name, options, processes, seconds) for processes in (1, 2))
        yield (
            f"| {name} (`{CASES[name].use}`) | {one.verdicts:,.0f} | {two.verdicts:,.0f} | {one.milliseconds:.3g} | {2000 / one.milliseconds:,.0f} |"
        )


def only_symbolic() -> list[Case]:
    """References that only math-verify reads."""
    integrals = [(n, m) for n in range(1, 9) for m in (n + 1, n + 2)]
    return [Case("symbolic", f"\\int_0^1 x^{n} dx", f"\\boxed{{\\frac{{1}}{{{m}}}}}", m == n + 1) for n, m in integrals]


SETS = {
    "mixed set, hostile ones among them": math_cases, "fresh set": lambda: math_cases("math_cases_fresh.txt"),
    "second set": lambda: math_cases("math_cases_second.txt"), "references that only math-verify reads": only_symbolic,
}  # fmt: skip


def mathematics() -> Iterator[str]:
    """Every case in one judging process: latency as the worker sees it, and the memory of the whole tree of processes."""
    yield "| cases | right | p50 ms | p99 ms | worst ms | MiB of all its processes |\n|---|---|---|---|---|---|"
    others = set(psutil.Process().children(recursive=True))
    for name, cases_of in SETS.items():
        process, cases, right, taken = isolated(MATH, Path(HERE)), cases_of(), 0, []
        process.start()
        for case in cases:
            begun = time.perf_counter()
            ((_, (verdict,)),) = process.call([[encode(sample(case.response, case.reference))]])
            taken.append(1000 * (time.perf_counter() - begun))
            right += (verdict["value"] == 1.0) is case.right
        tree = set(psutil.Process().children(recursive=True)) - others
        memory = [one.memory_full_info().pss / 2**20 for one in tree]
        process.close()
        taken.sort()
        yield (
            f"| {name} ({len(cases)}) | {right / len(cases):.3f} | {median(taken):.2f} | {taken[int(0.99 * len(taken))]:.1f} | {taken[-1]:.0f} | "
            f"{sum(memory):.0f} in {len(tree)} (proportional set size) |"
        )
    yield ""
    yield FRESH


def bombs() -> Iterator[str]:
    """What each costs a pool of one process: until its verdict, and until that of the harmless answer behind it."""
    process = isolated(MATH, Path(HERE))
    good = [encode(sample("\\boxed{\\frac13}", "\\int_0^1 x^2 dx"))]
    list(process.call([good]))
    me = psutil.Process()
    yield "| reference | answer | verdict | cause | s on the clock | and with the next one | s of the processor |\n|---|---|---|---|---|---|---|"
    for reference, answer in BOMBS:
        list(process.call([[encode(sample("\\boxed{1}", reference))]]))  # a reference is read once
        begun, worked, at = time.perf_counter(), spent(me), []
        verdicts = []
        for _, found in process.call([[encode(sample(f"\\boxed{{{answer}}}", reference))], good]):
            at.append(time.perf_counter() - begun)
            verdicts.append(found[0] if isinstance(found, list) else {"value": str(found)})
        assert verdicts[1]["value"] == 1.0, verdicts
        shown = (answer if len(answer) < 50 else answer[:45] + "...").replace("|", "\\|")
        yield (
            f"| `{reference}` | `{shown}` | {verdicts[0]['value']} | {verdicts[0].get('cause', '')} | {at[0]:.2f} | {at[1]:.2f} | "
            f"{spent(me) - worked:.2f} |"
        )
    process.close()


def contention() -> float:
    """Seconds of the clock that a second of the processor takes on this machine now."""
    started, worked = time.perf_counter(), time.process_time()
    while time.process_time() - worked < 1.0:
        pass
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    from conftest import judging_server

    versions = ", ".join(
        f"{name} {version(name)}"
        for name in ("torch", "transformers", "sympy", "math-verify", "reasoning-gym", "verifiers")
    )
    lines = [
        f"Python {platform.python_version()}, {versions}; {platform.machine()}, {os.cpu_count()} cores. Load {os.getloadavg()[0]:.1f} at the "
        f"start, where a second of the processor took {contention():.2f} s of the clock: rates and times of the clock are those of a machine that was as busy."
    ]
    with tempfile.TemporaryDirectory() as place, judging_server() as remote:
        parts = {
            "## Mathematics, case by case": mathematics(),
            "## Bombs": bombs(),
            "## Verdicts a second": rates(options.only, Needs(remote.url, Path(place)), options.seconds),
        }
        for title, part in parts.items():
            print(f"\n{title}\n", flush=True)
            lines += ["", title, ""]
            for line in part:
                print(line, flush=True)
                lines.append(line)
                if options.write:
                    write(lines)


def write(lines: Sequence[str]) -> None:
    head = PAGE.read_text().partition(MARK)[0] if PAGE.exists() else "# Rewarders\n\n"
    PAGE.write_text(head + MARK + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
