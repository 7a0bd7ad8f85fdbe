"""Arguments that several commands share, and how their values are parsed."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from broker.errors import RunFileError


def run_file(sub: argparse.ArgumentParser) -> None:
    """Add FILE, ``--set`` and ``--dir``."""
    sub.add_argument("file", type=Path, help="run file (TOML)")
    overrides(sub)
    sub.add_argument("--dir", dest="directory", type=Path, default=None, metavar="RUN", help="default: runs/NAME")


def overrides(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--set", dest="overrides", action="append", default=[], metavar="TABLE.KEY=VALUE")


def run_directory(sub: argparse.ArgumentParser, what: str = "a run's directory") -> None:
    sub.add_argument("run", type=Path, metavar="RUN", help=what)


def as_json(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true")


def key_values(given: Sequence[str], flag: str) -> dict[str, Any]:
    """Parse ``NAME=VALUE`` texts. A value that is not valid TOML is taken as plain text. Raises RunFileError, naming
    ``flag``.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise RunFileError(f"{flag} {text!r}: use NAME=VALUE")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = value.strip()
    return found


def step_range(text: str) -> tuple[int, int]:
    """The first and the last step of ``A-B`` (or of ``A``), both included. Raises RunFileError."""
    first, sign, last = text.partition("-")
    numbers = [part.isascii() and part.isdigit() for part in ((first, last) if sign else (first,))]
    if not all(numbers) or not 1 <= int(first) <= int(last or first):
        raise RunFileError(f"--steps {text!r}: write A-B with 1 <= A <= B")
    return int(first), int(last or first)
