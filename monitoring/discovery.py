"""Tells Prometheus where a run's daemons are: the file that ``file_sd_configs`` reads, and the same over HTTP.

Only what lives is listed: a daemon that leaves or dies disappears with the next look.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict
from urllib.parse import urlsplit

from monitoring.daemon import Registration, registrations
from monitoring.files import replace

TARGETS = "targets.json"
NONE: Mapping[str, str] = MappingProxyType({})


class TargetGroup(TypedDict):
    """One target in the form that Prometheus's file and HTTP service discovery ask for."""

    targets: list[str]
    labels: dict[str, str]


def targets_of(run: str, daemons: Iterable[Registration], others: Mapping[str, str] = NONE) -> list[TargetGroup]:
    """The targets of a run, each with the labels ``run``, ``daemon``, ``role`` and ``host``; ``others`` are addresses by name."""
    found = [(d.name, d.role, d.host, d.metrics) for d in daemons]
    found += [(name, name, urlsplit(f"//{_address(where)}").hostname or "", where) for name, where in others.items()]
    return [
        {"targets": [_address(where)], "labels": {"run": run, "daemon": name, "role": role, "host": host}}
        for name, role, host, where in found
    ]


def targets_text(run: str, directory: Path, others: Mapping[str, str] = NONE) -> str:
    """The run's targets now, as JSON."""
    return json.dumps(targets_of(run, registrations(directory), others), indent=1) + "\n"


def write_targets(run: str, directory: Path, others: Mapping[str, str] = NONE) -> Path:
    """Bring ``directory/targets.json`` up to date, in one go and only if it changed; returns its path."""
    path, text = directory / TARGETS, targets_text(run, directory, others)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        replace(path, text)  # the supervisor and a watcher may both write
    return path


def _address(metrics: str) -> str:
    """``host:port`` of an address that may be a URL."""
    return urlsplit(metrics).netloc if "://" in metrics else metrics
