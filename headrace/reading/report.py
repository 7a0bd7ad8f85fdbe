"""Gathers what the report shows from a run's log."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from broker.log import Log
from broker.run import Run
from headrace.reading.audit import Audit
from headrace.reading.excerpts import excerpts
from headrace.reading.history import History, whole
from headrace.reading.redaction import without_secrets
from headrace.reading.sampled import trained_samples
from headrace.reading.showcase import STEPS, showcase
from headrace.reading.stages import owned, score_of, stage_rows
from monitoring.report import RunReport


def report_of(log: Log, run: Run, summary: Mapping[str, Any], audit: Audit) -> RunReport:
    """The report's data. What it holds grows with the steps of the run (a few numbers each), not with their samples."""
    history = History.of(log, run.topics)
    results, steps = history.results(reinforced=True), history.steps
    names = sorted({name for r in results for name in r.metrics})
    phases = sorted({name for r in results for name in r.phases})
    histograms, texts = trained_samples(log, run.topics, steps)
    ends = steps if len(steps) <= 2 * STEPS else steps[:STEPS] + steps[-STEPS:]
    counts, stages = dataclasses.asdict(audit), stage_rows(log, run, history)
    return RunReport(
        name=run.table.name,
        summary=dict(summary),
        config=without_secrets(run.file.path.read_text(encoding="utf-8") if run.file.path.is_file() else ""),
        steps=[float(r.step) for r in results],
        series={name: [r.metrics.get(name, float("nan")) for r in results] for name in names},
        evaluations=[(float(e.step), e.name, e.pass_at_1, *e.pass_at_1_interval) for e in history.evaluations()],
        phases={name: [r.phases.get(name, 0.0) for r in results] for name in phases},
        samples=showcase(log, run.topics, list(whole(log, run.topics, ends))),
        histograms=histograms,
        texts=texts,
        audit={name: value for name, value in counts.items() if isinstance(value, int)},
        dropped=dict(audit.dropped_by_reason),
        problems=list(audit.problems),
        stages=stages,
        course=[score_of(e) for e in history.evaluations()],
        excerpts=excerpts(log, run.topics, owned(run, history)),
    )
