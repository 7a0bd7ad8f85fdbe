"""``headrace keys``: create the keys of a control road that reaches other machines."""

from __future__ import annotations

import argparse
from pathlib import Path

from broker.control.keys import Keys


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", type=Path, metavar="FILE")


def main(options: argparse.Namespace) -> int:
    Keys.make(options.file)
    print(f"{options.file}: copy it to every machine of the run and name it in [broker] keys")
    return 0
