"""Trains one setting in a process of a pool and keeps the result."""

from __future__ import annotations

from benchmarks.staleness.bases import base, fingerprint
from benchmarks.staleness.lab import Setting, experiment
from benchmarks.staleness.results import add


def run(setting: Setting) -> str:
    """Returns the line that tells of it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    found = experiment(base(setting.base), setting)
    add({**found, "weights": fingerprint(setting.base)})
    return f"{setting} {found['curve']} {found['seconds']} s"
