"""All rules together: from evidence to findings, the deepest cause first."""

from __future__ import annotations

from headrace.doctor import ground, groups, judging, workers
from headrace.doctor.evidence import Evidence
from headrace.doctor.finding import Finding, Rule, moving
from monitoring.metrics import LearnerMetrics

__all__ = ["RULES", "Finding", "diagnose", "moving", "state_of"]

RULES: tuple[Rule, ...] = (
    *ground.RULES, *workers.RULES, *judging.RULES, *workers.SLOW, judging.slow_rewarder, workers.slow_actors, *groups.RULES,
    *ground.NOTICES, *workers.NOTICES, *judging.NOTICES, *groups.NOTICES,
)  # fmt: skip


def diagnose(evidence: Evidence) -> list[Finding]:
    """All findings, the deepest cause first."""
    return [finding for rule in RULES for finding in rule(evidence)]


def state_of(e: Evidence) -> str:
    """What the run does, in one line."""
    stage = e.steps[-1] if e.steps else None
    parts = [f"run {e.run.table.name!r} in {e.run.directory}"]
    if stage is not None:
        parts.append(f"stage {stage.stage}, step {stage.stage_step}, version {stage.step}")
    learner = e.learner
    if learner is not None and (last := learner.get(str(LearnerMetrics.last_step))):
        parts.append(f"last step {max(0.0, e.now - last):.0f} s ago")
    roles = [f"{len(e.of(role))} {role}s" for role in ("learner", "actor", "rewarder") if e.of(role)]
    return "; ".join([*parts, ", ".join(roles) or "no daemons"])
