"""The results of experiments: one line of JSON each, so that a grid goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.staleness.lab import Setting

FILE = Path(__file__).parent / "results.jsonl"


def key(found: dict[str, Any]) -> str:
    """What makes an experiment that one and no other."""
    return json.dumps({f.name: found[f.name] for f in fields(Setting)}, sort_keys=True)


def known() -> dict[str, dict[str, Any]]:
    """All results by their experiment."""
    if not FILE.exists():
        return {}
    return {key(found): found for found in map(json.loads, FILE.read_text().splitlines())}


def missing(settings: Iterable[Setting]) -> list[Setting]:
    done = known()
    return [setting for setting in settings if key(json.loads(json.dumps(asdict(setting)))) not in done]


def add(found: dict[str, Any]) -> None:
    with FILE.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(found) + "\n")
