"""What tests read of a run that goes on or is over: its log, its metrics, its output, its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from broker.messages import Manifest, StepResult
from headrace.reading.records import scan
from headrace.running.rundir import reopen
from monitoring.scrape import scrape


def messages(directory: Path, topic: str) -> list[Any]:
    """Everything in a topic of the run; nothing before the run has begun."""
    if not (directory / "run.toml").exists():
        return []
    run = reopen(directory)
    log = run.open_log()
    found = [message for _, message in scan(log, getattr(run.topics, topic))]
    log.close()
    return found


def manifests(directory: Path) -> list[Manifest]:
    return [m for m in messages(directory, "steps") if isinstance(m, Manifest)]


def steps_of(directory: Path) -> int:
    """How many steps were planned."""
    return sum(m.kind == "step" for m in manifests(directory))


def results_of(directory: Path) -> list[StepResult]:
    """Of the steps of the second stage, redone ones again."""
    return [m for m in messages(directory, "steps") if isinstance(m, StepResult) and m.stage == 1]


def scraped(directory: Path, daemon: str) -> dict[str, float]:
    """The metrics of a daemon of the run."""
    entry = json.loads((directory / "daemons" / f"{daemon}.json").read_text())
    return scrape(entry["metrics"], 10.0)


def said(directory: Path) -> str:
    """The end of what the run printed."""
    return (directory / "run.out").read_text()[-3000:]


def sha256_of(checkpoint: Path) -> str:
    from learner.model.load import load_model
    from learner.training.trainer import state_sha256

    return state_sha256(load_model(str(checkpoint)))
