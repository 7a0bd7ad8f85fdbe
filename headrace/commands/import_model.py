"""``headrace import FILE.gguf DIR``: convert a model from a GGUF file to a directory for ``[run] model``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", type=Path, metavar="FILE.gguf")
    sub.add_argument("directory", type=Path, metavar="DIR", help="a new directory")
    sub.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="what the weights are written as (default float32)"
    )


def main(options: argparse.Namespace) -> int:
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # must be set before tqdm is imported
    from learner.model.gguf import convert

    began = time.monotonic()
    convert(options.file, options.directory, options.dtype, lambda line: print(line, flush=True))
    print(
        f"{options.directory}: done in {time.monotonic() - began:.0f} s; name it in [run] model, and ask `headrace plan`"
    )
    return 0
