"""Memory and speed of the learner's step, as ratios within one run, on one CPU thread; ``gpu`` on a CUDA device.

    bench_learner.py [head] [packing] [sharing] [step] [gpu] [--times 1] [--rounds 5]

Seconds are CPU seconds of the process, the median of ``rounds`` taken in turn; ``times`` repeats it all.
"""

from __future__ import annotations

import argparse
import os
import platform

import torch
import transformers
from learnerbench import gpu, head, packed, sharing, step

PARTS = {"head": head.report, "packing": packed.report, "sharing": sharing.report, "step": step.report, "gpu": gpu.report}


def machine() -> str:
    """The versions and the machine, in one line."""
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    return (
        f"{model or platform.processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
