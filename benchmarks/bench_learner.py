"""Memory and speed of the learner's step, as ratios within one run, on one CPU thread; ``gpu`` on a CUDA device.

    bench_learner.py [head] [packing] [sharing] [step] [wide] [gpu] [--times 1] [--rounds 5]

Seconds are CPU seconds of the process, the median of ``rounds`` taken in turn; ``times`` repeats it all.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

import torch
import transformers
from learnerbench import gpu, head, packed, sharing, step, wide

PARTS = {
    "head": head.report,
    "packing": packed.report,
    "sharing": sharing.report,
    "step": step.report,
    "wide": wide.report,
    "gpu": gpu.report,
}


def machine() -> str:
    """The versions and the machine, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return (
        f"{model or platform.processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["peak"]:
        vocabulary, bonus, variant = sys.argv[2:]
        print(head.peak(int(vocabulary), float(bonus), variant))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], help="all of them without any; gpu where there is one"
    )
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"# The learner's step\n\n{machine()}\n")
    for name in options.parts or PARTS:
        PARTS[name](options.times, options.rounds)
        print(flush=True)


if __name__ == "__main__":
    main()
