"""Gathers what the report shows from a run's log."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

from broker.log import Log
from broker.messages import Manifest, Trajectory
from broker.run import Run
from headrace.reading.records import scan
from headrace.reading.showcase import showcase
from headrace.reading.summary import History
from headrace.reading.textstats import Window
from headrace.reading.verify import Audit
from headrace.running.redaction import without_secrets
from monitoring.report import Histogram, RunReport, TextWindow

WINDOWS = 40
READ_A_WINDOW = 512  # samples whose words are counted: enough for shares that are exact to a few percent


def report_of(log: Log, run: Run, summary: Mapping[str, Any], audit: Audit) -> RunReport:
    """The report's data."""
    history = History(log, run)
    names = sorted({name for r in history.rl for name in r.metrics})
    phases = sorted({name for r in history.rl for name in r.phases})
    trained = [m for m in history.manifests if m.kind == "step"]
    histograms, texts = _trained_samples(log, run, trained)
    counts = dataclasses.asdict(audit)
    return RunReport(
        name=run.table.name,
        summary=dict(summary),
        config=without_secrets(run.file.path.read_text(encoding="utf-8") if run.file.path.is_file() else ""),
        steps=[float(r.step) for r in history.rl],
        series={name: [r.metrics.get(name, float("nan")) for r in history.rl] for name in names},
        evaluations=[(float(e.step), e.name, e.pass_at_1, *e.pass_at_1_interval) for e in history.evaluations],
        phases={name: [r.phases.get(name, 0.0) for r in history.rl] for name in phases},
        samples=showcase(log, run.topics, trained),
        histograms=histograms,
        texts=texts,
        audit={name: value for name, value in counts.items() if isinstance(value, int)},
        dropped=dict(audit.dropped_by_reason),
        problems=list(audit.problems),
    )


def _trained_samples(log: Log, run: Run, trained: Sequence[Manifest]) -> tuple[list[Histogram], list[TextWindow]]:
    """Age, length and words of every trained sample that the log still has, in one pass over the trajectories."""
    order = {
        (s.position.partition, s.position.offset): i for i, m in enumerate(trained) for g in m.groups for s in g.samples
    }
    size = max(1, -(-len(trained) // WINDOWS))
    windows = [Window(part[0].step, part[-1].step) for part in _runs(trained, size)]
    due = Counter(i // size for i in order.values())
    ages, lengths = (Counter[int](), Counter[int]()), (Counter[int](), Counter[int]())
    for record, sample in scan(log, run.topics.trajectories):
        at = order.get((record.partition, record.offset))
        if at is None or not isinstance(sample, Trajectory):
            continue
        half = at >= len(trained) / 2
        ages[half][trained[at].step - 1 - sample.oldest_version] += 1
        lengths[half][sample.response_tokens] += 1
        window = windows[at // size]
        window.count(sample.finish_reason)
        if crc32(sample.id.encode("utf-8", "replace")) % -(-due[at // size] // READ_A_WINDOW) == 0:
            window.look_into(sample.text)
    histograms = [
        Histogram("Staleness of trained samples", "versions", *ages),
        Histogram("Response length of trained samples", "tokens", *lengths),
    ]
    return histograms, [w.shares() for w in windows if w.samples]


def _runs(manifests: Sequence[Manifest], size: int) -> list[Sequence[Manifest]]:
    return [manifests[at : at + size] for at in range(0, len(manifests), size)]
