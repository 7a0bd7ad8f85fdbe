"""Stages down, benchmarks across (DeepSeek-R1, arXiv 2501.12948, tables 3 and 7), the course of each benchmark, and samples side by side."""

from __future__ import annotations

from collections.abc import Sequence

from monitoring.report.charts import Line, line_chart
from monitoring.report.data import Excerpt, RunReport, Score, StageRow, TextWindow
from monitoring.report.samples import QUESTION_CHARACTERS, clipped
from monitoring.report.scale import figure
from monitoring.report.svg import esc

TEXT_CHARACTERS = 2_500
NO_EVALUATION = '<p class="dim">No benchmark has been asked.</p>'


def stage_table(report: RunReport) -> str:
    """pass@1 of the model that each stage left; the best of each benchmark is marked."""
    names = benchmarks(report.stages)
    rows = [row for row in report.stages if row.scores]
    if not rows:
        return NO_EVALUATION
    best = {name: max(row.scores[name].value for row in rows if name in row.scores) for name in names}
    head = "".join(f"<th>{esc(name, 80)}</th>" for name in names)
    body = "".join(
        f"<tr><th>{esc(row.name, 80)}</th>{''.join(_cell(row.scores.get(name), best[name]) for name in names)}</tr>"
        for row in rows
    )
    told = "pass@1 of the model that each stage left, its 95% interval over questions, and the majority vote where there is more than one sample."
    return f'<p class="dim">{told}</p>{_table(f"<tr><th>stage</th>{head}</tr>", body)}{_courses(report.course)}'


def benchmarks(rows: Sequence[StageRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.scores))


def _cell(score: Score | None, best: float) -> str:
    if score is None:
        return '<td class="dim">-</td>'
    value = f"{100 * score.value:.1f}"
    shown = f"<b>{value}</b>" if score.value == best else value
    vote = f", cons@{score.k} {100 * score.cons:.1f}" if score.k > 1 else ""
    told = (
        f"{score.questions:,} questions, {score.k} samples each, {figure(score.tokens)} tokens, version {score.step:g}"
    )
    return f'<td title="{esc(told)}">{shown} <small class="dim">[{100 * score.low:.1f}, {100 * score.high:.1f}]{vote}</small></td>'


def _courses(course: Sequence[Score]) -> str:
    """What the benchmarks did over the versions (Figure 2), and how long answers became (Figure 3)."""
    charts = []
    names = list(dict.fromkeys(score.benchmark for score in course))
    lengths = []
    steps = sorted({score.step for score in course})
    for name in names:
        mine = {score.step: score for score in course if score.benchmark == name}
        if len(mine) > 1:
            at = sorted(mine)
            found = [mine[step] for step in at]
            lines = [Line("pass@1", [s.value for s in found], [s.low for s in found], [s.high for s in found])]
            if any(s.k > 1 for s in found):
                lines.append(Line("majority vote", [s.cons for s in found]))
            charts.append(line_chart(name, at, lines, fixed=True))
        lengths.append(Line(name, [mine[s].tokens if s in mine else None for s in steps]))
    if charts:
        charts.append(line_chart("Length of the answers", steps, lengths, "tokens"))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def cost_table(report: RunReport) -> str:
    """Tokens and seconds of each stage (table 7)."""
    if not report.stages:
        return '<p class="dim">No stage has left a record.</p>'
    columns = (
        "stage",
        "kind",
        "steps",
        "tokens generated",
        "tokens trained",
        "documents",
        "left out",
        "seconds",
        "share of the time",
    )
    total = sum(row.seconds for row in report.stages) or 1.0
    body = "".join(
        f"<tr><th>{esc(row.name, 80)}</th>"
        + "".join(
            f"<td>{esc(cell, 60)}</td>"
            for cell in (
                row.kind, f"{row.steps:,}", figure(row.generated), figure(row.trained), figure(row.documents), figure(row.odd), f"{row.seconds:,.0f}", f"{row.seconds / total:.1%}",
            )
        )
        + "</tr>"
        for row in report.stages
    )  # fmt: skip
    told = "Seconds are those between the records of the log: of a run that was stopped, with the time in which it stood still."
    return f'<p class="dim">{told}</p>{_table("<tr>" + "".join(f"<th>{c}</th>" for c in columns) + "</tr>", body)}'


def language_table(windows: Sequence[TextWindow]) -> str:
    """The share of words by script in the first and in the last window of trained samples, and how many keep to one script."""
    if not windows:
        return ""
    first, last = windows[0], windows[-1]
    scripts = sorted(
        first.scripts.keys() | last.scripts.keys(), key=lambda s: -last.scripts.get(s, 0.0) - first.scripts.get(s, 0.0)
    )
    rows = [("words in their response's main script", first.consistency, last.consistency)]
    rows += [
        (f"words in {script}", first.scripts.get(script, 0.0), last.scripts.get(script, 0.0)) for script in scripts
    ]
    body = "".join(f"<tr><th>{esc(name, 80)}</th><td>{_share(a)}</td><td>{_share(b)}</td></tr>" for name, a, b in rows)
    return _table("<tr><th>languages</th><th>before</th><th>after</th></tr>", body)


def _share(value: float) -> str:
    return f"{value:.1%}" if value == value else "-"


def side_by_side(excerpts: Sequence[Excerpt]) -> str:
    """Each question with an answer of every stage next to the others: all of it text that a model wrote."""
    if not excerpts:
        return '<p class="dim">No evaluation names samples that can be shown.</p>'
    out = []
    for excerpt in excerpts:
        cards = "".join(
            f'<div class="card"><h3>{esc(stage, 80)} <span class="{_mood(right)}">{_verdict(right)}</span></h3>'
            f"<pre>{clipped(text, TEXT_CHARACTERS)}</pre></div>"
            for stage, right, text in excerpt.answers
        )
        start = " ".join(excerpt.question[:200].split())
        out.append(
            f'<details><summary><span class="chip">{esc(excerpt.benchmark, 80)}</span><span class="start">{esc(start)}</span></summary>'
            f'<pre>{clipped(excerpt.question, QUESTION_CHARACTERS)}</pre><div class="tables">{cards}</div></details>'
        )
    return "".join(out)


def _mood(right: bool | None) -> str:
    return "dim" if right is None else "good" if right else "bad"


def _verdict(right: bool | None) -> str:
    return "not judged" if right is None else "right" if right else "wrong"


def _table(head: str, body: str) -> str:
    return f'<figure class="wide"><table class="numbers stages"><thead>{head}</thead>{body}</table></figure>'
