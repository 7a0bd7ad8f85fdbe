"""Objectives against stale data: ``python -m benchmarks.staleness GRID`` trains what is missing, and writes staleness.md."""

from __future__ import annotations

import argparse
import multiprocessing
import os

from benchmarks.staleness.bases import fingerprint
from benchmarks.staleness.grids import BASES, GRIDS, default
from benchmarks.staleness.results import missing
from benchmarks.staleness.runner import run
from benchmarks.staleness.table import write


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.staleness", description=__doc__)
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--bases", type=int, nargs="*", choices=BASES, default=BASES, help="only these (default: all)")
    options = parser.parse_args()
    wanted = [setting for setting in GRIDS[options.grid]() if setting.base in options.bases]
    settings = missing(wanted, fingerprint)
    if settings:
        print(f"{len(settings)} experiments, about a minute of one core each", flush=True)
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=8) as pool:
        for number, line in enumerate(pool.imap(run, settings, chunksize=1), 1):
            print(f"{number}/{len(settings)} {line}", flush=True)
    write(default(8, 0))


if __name__ == "__main__":
    main()
