"""The numbers at the top of a report."""

from __future__ import annotations

import math
from typing import Any

from monitoring.report.data import RunReport, waiting_share
from monitoring.report.scale import figure
from monitoring.report.svg import esc

ENDS = 0.1  # share of the steps at either end between which a change is measured


def headline(report: RunReport) -> str:
    """A tile for each number that the run has."""
    summary = report.summary
    tiles = [_passed(report)]
    tiles += _changed(report, "reward_mean", "reward") + _changed(
        report, "response_length_mean", "response length", "tokens"
    )
    if origin := _table(summary, "forked_from"):
        tiles.append(("forked from", str(origin.get("run", "")), f"at step {origin.get('step', 0)}"))
    tiles.append(("optimizer steps", f"{len(report.steps):,}", _clock(summary.get("wall_seconds"))))
    tokens, groups = _table(summary, "tokens"), _table(summary, "groups")
    if tokens:
        told = f"of {figure(tokens.get('generated', 0))} generated"
        tiles.append(("tokens trained", figure(tokens.get("trained", 0)), told))
    if groups:
        told = f"of {groups.get('fed', 0):,} fed, {groups.get('dropped', 0):,} dropped"
        tiles.append(("groups trained", f"{groups.get('trained', 0):,}", told))
    stale = _table(summary, "staleness")
    if stale:
        tiles.append(
            ("mean staleness", figure(stale.get("mean", 0.0)), f"at most {figure(stale.get('max', 0.0))} versions")
        )
    if report.phases:
        tiles.append(("learner waited", f"{waiting_share(report.phases):.1%}", "of the time of its steps"))
    problems = report.audit.get("problem_count")
    if problems is not None:
        tiles.append(("audit", "sound" if not problems else f"{problems:,} found", "every group has one fate"))
    shown = [
        f"<div><dt>{esc(name)}</dt><dd{_mood(name, value)}>{esc(value, 100)}<small>{esc(told, 200)}</small></dd></div>"
        for name, value, told in tiles
        if value
    ]
    return f'<dl class="tiles">{"".join(shown)}</dl>'


def _passed(report: RunReport) -> tuple[str, str, str]:
    """Held-out pass@1 before and after, as the summary has it."""
    told = _table(report.summary, "pass_at_1")
    before, after = told.get("before"), told.get("after")
    if before is None or after is None:
        return ("held-out pass@1", "", "")
    return ("held-out pass@1", f"{after:.3f}", f"before {before:.3f}; {told.get('questions', 0)} questions")


def _changed(report: RunReport, name: str, label: str, unit: str = "") -> list[tuple[str, str, str]]:
    values = [v for v in report.series.get(name, []) if math.isfinite(v)]
    if not values:
        return []
    count = max(1, int(len(values) * ENDS))
    first, last = sum(values[:count]) / count, sum(values[-count:]) / count
    return [(label, figure(last), f"{unit} at the end; {figure(first)} at the start".strip())]


def _table(summary: dict[str, Any], name: str) -> dict[str, Any]:
    found = summary.get(name)
    return found if isinstance(found, dict) else {}


def _clock(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return ""
    hours, minutes = int(seconds // 3600), seconds % 3600 / 60
    return f"in {hours} h {minutes:.0f} min" if hours else f"in {minutes:.1f} min"


def _mood(name: str, value: str) -> str:
    return "" if name != "audit" else ' class="good"' if value == "sound" else ' class="bad"'
