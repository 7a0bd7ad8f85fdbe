"""The results of experiments: one line of JSON each, so that a grid goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.staleness.lab import Setting

FILE = Path(__file__).parent / "results.jsonl"


def key(found: dict[str, Any]) -> str:
    """What makes an experiment that one and no other: its setting, and the weights that it began from (older results do not say which)."""
    named = {f.name: found[f.name] for f in fields(Setting)}
    return json.dumps({**named, "weights": found.get("weights", "")}, sort_keys=True)


def known() -> dict[str, dict[str, Any]]:
    """All results by their experiment."""
    if not FILE.exists():
        return {}
    return {key(found): found for found in map(json.loads, FILE.read_text().splitlines())}


def missing(settings: Iterable[Setting], weights: Callable[[int], str]) -> list[Setting]:
    """Those that have no result from the base of these ``weights`` (by seed)."""
    done = known()
    named = [
        (setting, {**json.loads(json.dumps(asdict(setting))), "weights": weights(setting.base)}) for setting in settings
    ]
    return [setting for setting, found in named if key(found) not in done]


def add(found: dict[str, Any]) -> None:
    with FILE.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(found) + "\n")
