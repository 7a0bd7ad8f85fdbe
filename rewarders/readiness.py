"""Waits until a rewarder may judge: ``prepare()``, if it has one, is called until it succeeds; only then does its
daemon join the consumer group.

A refusal sets ``headrace_sandbox_degraded`` and is logged. Until then this daemon takes no samples; other daemons of
the rewarder judge them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from broker import plugins
from broker.isolation import Isolated
from broker.sandbox import SandboxError
from monitoring.daemon import Stop
from monitoring.metrics import RewarderMetrics
from rewarders.config import RewarderTable
from rewarders.registry import load_any

log_ = logging.getLogger("rewarder")
PREPARE_SECONDS = 60.0
AGAIN_SECONDS = 30.0


def await_ready(
    rewarder: str, table: RewarderTable, base: Path, metrics: RewarderMetrics, stop: Stop, again: float = AGAIN_SECONDS
) -> bool:
    """True as soon as the rewarder may judge; False if ``stop`` came first. Raises HeadraceError if it cannot be made."""
    if not plugins.may_have(table.use, base, "prepare"):
        return True
    while not stop:
        why = refusal(table, base)
        metrics.degraded.set(1.0 if why else 0.0)
        if not why:
            return True
        log_.error("rewarder %s takes no samples: %s; tried again in %g s", rewarder, why, again)
        stop.wait(again)
    return False


def refusal(table: RewarderTable, base: Path) -> str:
    """Why the rewarder may not judge here; empty if it may. ``prepare()`` runs in a separate process."""
    options = {"use": table.use, "options": table.options, "base": str(base), "flat": table.flat}
    asked = Isolated("rewarders.readiness:asked", options, timeout=PREPARE_SECONDS, memory_mb=table.worker.memory_mb)
    try:
        _, answer = next(iter(asked.call([b""])))
    finally:
        asked.stop()
    return str(answer)


def asked(options: dict[str, Any]) -> Any:
    """The handler of the process that is asked: why the rewarder refuses, or nothing."""
    rewarder = load_any(options["use"], options["options"], Path(options["base"]), options["flat"])

    def ask(_: bytes) -> str:
        try:
            getattr(rewarder, "prepare", lambda: None)()
        except SandboxError as error:
            return str(error)
        return ""

    return ask
