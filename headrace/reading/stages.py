"""Gathers the results and the costs of each stage of a run: the rows of DeepSeek-R1's tables 3 and 7 (arXiv 2501.12948) for this run.

An evaluation is that of the model it asked: a stage of kind ``evaluate`` counts for the stage whose model it names, else for the last one before it
that made a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from broker.log import Log
from broker.messages import Evaluation
from broker.run import Run
from headrace.reading.answered import benchmark_of
from headrace.reading.history import History
from headrace.reading.sampled import generated_until
from monitoring.hacking import Monitor
from monitoring.report import RunReport, Score, StageRow, TextWindow

MAKES_NO_MODEL = ("evaluate", "reject", "train_reward", "rewrite")


def tables(run: Run) -> list[Mapping[str, Any]]:
    """The ``[[stage]]`` tables as they stand in the run file."""
    raw = run.file.tables.get("stage", [])
    return [table if isinstance(table, Mapping) else {} for table in (raw if isinstance(raw, list) else [raw])]


def named(table: Mapping[str, Any], index: int) -> str:
    return str(table.get("name") or f"{index}-{str(table.get('kind', '')).rpartition(':')[2]}")


def owner(stages: list[Mapping[str, Any]], index: int) -> int:
    """The stage whose model an evaluation within stage ``index`` asks."""
    if index >= len(stages) or stages[index].get("kind") not in MAKES_NO_MODEL:
        return index
    if model := stages[index].get("model"):
        return next((i for i in range(index) if named(stages[i], i) == model), index)
    made = [i for i in range(index) if stages[i].get("kind") not in MAKES_NO_MODEL]
    return made[-1] if made else index


def score_of(evaluation: Evaluation) -> Score:
    return Score(
        benchmark_of(evaluation), float(evaluation.step), evaluation.questions, evaluation.k, evaluation.pass_at_1,
        *evaluation.pass_at_1_interval, evaluation.cons_at_k, evaluation.response_tokens,
    )  # fmt: skip


def owned(run: Run, history: History) -> dict[str, dict[str, Evaluation]]:
    """The newest evaluation of each benchmark, by the stage whose model it asked."""
    stages = tables(run)
    found: dict[int, dict[str, Evaluation]] = defaultdict(dict)
    for evaluation in history.evaluations():
        if evaluation.questions:
            found[owner(stages, evaluation.stage)][benchmark_of(evaluation)] = evaluation
    return {_name(stages, index): found[index] for index in sorted(found)}


def stage_rows(log: Log, run: Run, history: History) -> list[StageRow]:
    """A row for each stage that the log knows of."""
    stages, scores = tables(run), owned(run, history)
    times: dict[int, list[float]] = defaultdict(list)
    for head in history.manifests:
        times[head.stage].append(head.at)
    for done in history.executions():
        times[done.result.stage].append(done.at)
    for ended in history.endings:
        times[ended.ending.stage].append(ended.at)
    known = sorted(times)
    ends = [max(t for index in known[: place + 1] for t in times[index]) for place in range(len(known))]
    generated = generated_until(log, run.topics, ends)
    rows, before = [], None
    for index, end, tokens in zip(known, ends, generated, strict=True):
        name = _name(stages, index)
        results = [done.result for done in history.executions() if done.result.stage == index]
        steps = max((r.stage_step for r in results), default=0)
        trained = sum(r.metrics.get("tokens_trained", 0.0) for r in results)
        if index not in history.reinforced and results:  # supervised stages record some of their steps
            trained *= max(1.0, steps / len(results))
        begin = min(times[index]) if before is None else before
        kind = str(stages[index].get("kind", "")) if index < len(stages) else ""
        evaluated = {data: score_of(e) for data, e in scores.get(name, {}).items()}
        documents = sum(r.documents[1] for r in results if r.documents is not None)
        odd = int(max((r.metrics.get("odd_documents", 0.0) for r in results), default=0.0))
        documents = max(0, documents - odd)
        rows.append(
            StageRow(name, kind, steps, evaluated, round(trained), tokens, max(0.0, end - begin), documents, odd)
        )
        before = end
    return rows


def _name(stages: list[Mapping[str, Any]], index: int) -> str:
    return named(stages[index], index) if index < len(stages) else f"stage {index}"


def further(report: RunReport, history: History) -> dict[str, Any]:
    """The parts of ``summary.json`` on the stages, on how the model writes, and on rewards that rise while accuracy falls."""
    return {
        "stages": {row.name: _stage(row) for row in report.stages},
        "writing": {
            name: _written(report.texts[place]) for name, place in (("before", 0), ("after", -1)) if report.texts
        },
        "hacking": {name: round(gap, 4) for name, gap in _gaps(history).items()},
    }


def _stage(row: StageRow) -> dict[str, Any]:
    benchmarks = {
        name: {
            "pass_at_1": s.value, "low": s.low, "high": s.high, "cons_at_k": s.cons, "k": s.k, "questions": s.questions,
            "tokens": round(s.tokens, 1), "step": int(s.step),
        }
        for name, s in row.scores.items()
    }  # fmt: skip
    return {
        "kind": row.kind, "steps": row.steps, "tokens_trained": row.trained, "tokens_generated": row.generated,
        "documents": row.documents, "odd_documents": row.odd, "seconds": round(row.seconds, 1), "benchmarks": benchmarks,
    }  # fmt: skip


def _written(window: TextWindow) -> dict[str, Any]:
    consistency = window.consistency if window.consistency == window.consistency else None
    shares = {name: round(share, 4) for name, share in sorted(window.scripts.items(), key=lambda item: -item[1])}
    return {
        "steps": [window.first, window.last], "samples": window.read, "reflective": round(window.reflective, 4),
        "language_consistency": None if consistency is None else round(consistency, 4), "scripts": shares, "cut": round(window.cut, 4),
    }  # fmt: skip


def _gaps(history: History) -> dict[str, float]:
    """By how much each rewarder has risen while held-out accuracy, or a shadow, has fallen: the largest of all stages at their ends."""
    monitor, worst, stage = Monitor(), dict[str, float](), -1
    told: list[tuple[int, int, int, Any]] = [(r.stage, r.step, 0, r) for r in history.results(reinforced=True)]
    told += [(e.stage, e.step, 1, e) for e in history.evaluations() if e.questions and e.stage in history.reinforced]
    gaps: dict[str, float] = {}
    for index, step, _, message in sorted(told, key=lambda item: item[:3]):
        if index != stage:
            worst = {name: max(worst.get(name, 0.0), gaps.get(name, 0.0)) for name in worst.keys() | gaps.keys()}
            stage, gaps = index, {}
            monitor.begin()
        if isinstance(message, Evaluation):
            gaps = monitor.evaluation(benchmark_of(message), step, message.pass_at_1)
        else:
            monitor.step(message.metrics)
    return {name: max(worst.get(name, 0.0), gaps.get(name, 0.0)) for name in sorted(worst.keys() | gaps.keys())}
