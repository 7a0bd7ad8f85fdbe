"""Tells Prometheus where a run's daemons are: the file that ``file_sd_configs`` reads, and the same over HTTP.

Only what lives is listed: a daemon that leaves or dies disappears with the next look.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit

from monitoring.daemon import Registration, registrations

TARGETS = "targets.json"


class TargetGroup(TypedDict):
    """One target in the form that Prometheus's file and HTTP service discovery ask for."""

    targets: list[str]
    labels: dict[str, str]


def targets_of(run: str, daemons: Iterable[Registration]) -> list[TargetGroup]:
    """The targets of a run, each with the labels ``run``, ``daemon``, ``role`` and ``host``."""
    return [
        {"targets": [_address(d.metrics)], "labels": {"run": run, "daemon": d.name, "role": d.role, "host": d.host}}
        for d in daemons
        if d.metrics
    ]


def targets_text(run: str, directory: Path) -> str:
    """The run's targets now, as JSON."""
    return json.dumps(targets_of(run, registrations(directory)), indent=1) + "\n"


def write_targets(run: str, directory: Path) -> Path:
    """Bring ``directory/targets.json`` up to date, in one go and only if it changed; returns its path."""
    path, text = directory / TARGETS, targets_text(run, directory)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        temporary = path.with_suffix(".new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    return path


def _address(metrics: str) -> str:
    """``host:port`` of an address that may be a URL."""
    return urlsplit(metrics).netloc if "://" in metrics else metrics
