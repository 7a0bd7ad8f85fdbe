"""The report as one HTML file: no network, no script, and every text that came from elsewhere is escaped and clipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from monitoring.report.charts import histogram, largest, share_bar, stack_chart
from monitoring.report.curves import curves
from monitoring.report.data import SHOWN_ABOVE, RunReport, flatten, waiting_share
from monitoring.report.headline import headline
from monitoring.report.samples import sample_list
from monitoring.report.stages import cost_table, language_table, side_by_side, stage_table
from monitoring.report.svg import esc
from monitoring.report.writing import writing

CONFIG_CHARACTERS = 200_000


def write_html(report: RunReport, path: Path) -> None:
    """Write the whole report to ``path``."""
    path.write_text(page(report), encoding="utf-8")


def page(report: RunReport) -> str:
    """The whole report."""
    made = {name: (title, build(report)) for name, (title, build) in SECTIONS.items()}
    sections = [f'<section id="{name}"><h2>{title}</h2>{body}</section>' for name, (title, body) in made.items()]
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        name=esc(report.name, 200),
        lead=f"Optimizer steps of reinforcement learning: {len(report.steps):,}. All numbers are from the run's log.",
        nav="".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in made.items()),
        sections="\n".join(sections),
    )


def _curves(report: RunReport) -> str:
    return _grid(curves(report), "No step has been trained.")


def _time(report: RunReport) -> str:
    totals = {name: sum(seconds) for name, seconds in report.phases.items()}
    bar = share_bar(totals)
    if not bar:
        return '<p class="dim">No time is known.</p>'
    told = f"The learner waited for samples in {waiting_share(report.phases):.1%} of its {sum(totals.values()):,.0f} s"
    layers = largest(report.phases)
    chart = stack_chart("Time of each step by phase", report.steps, layers, "s")
    shares = stack_chart("Share of each step by phase", report.steps, _shares(layers), "%")
    return (
        f'<p>{told} of training steps.</p><figure class="wide">{bar}</figure><div class="charts">{chart}{shares}</div>'
    )


def _shares(phases: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The phases as percent of their step."""
    totals = [sum(column) for column in zip(*phases.values(), strict=True)]
    return {
        name: [100 * v / total if total else 0.0 for v, total in zip(seconds, totals, strict=True)]
        for name, seconds in phases.items()
    }


def _histograms(report: RunReport) -> str:
    return _grid([histogram(h) for h in report.histograms], "No trained sample could be read.")


def _writing(report: RunReport) -> str:
    return writing(report.texts) + language_table(report.texts)


def _side_by_side(report: RunReport) -> str:
    return side_by_side(report.excerpts)


def _samples(report: RunReport) -> str:
    return sample_list(report.samples)


def _audit(report: RunReport) -> str:
    tables = [_card("Counts", {k.replace("_", " "): f"{v:,}" for k, v in report.audit.items()})]
    tables.append(_card("Dropped groups by reason", {k: f"{v:,}" for k, v in sorted(report.dropped.items())}))
    count = report.audit.get("problem_count", 0)
    verdict = (
        f'<p class="bad">The audit of the log found {count:,} problems.</p>'
        if count
        else '<p class="good">The log is sound.</p>'
    )
    shown = "".join(f"<li>{esc(problem, 400)}</li>" for problem in report.problems)
    problems = f'<ul class="problems">{shown}</ul>' if shown else ""
    return f'{verdict}{problems}<div class="tables">{"".join(tables)}</div>'


def _numbers(report: RunReport) -> str:
    shown = {name: value for name, value in report.summary.items() if name not in SHOWN_ABOVE}
    parts = {name: value for name, value in shown.items() if isinstance(value, dict)}
    plain = {name: value for name, value in shown.items() if name not in parts}
    cards = [_card("Run", dict(flatten(plain)))] + [
        _card(k.replace("_", " "), dict(flatten(v))) for k, v in parts.items()
    ]
    return f'<div class="tables">{"".join(cards)}</div>'


def _config(report: RunReport) -> str:
    return f"<pre>{esc(report.config, CONFIG_CHARACTERS)}</pre>" if report.config else '<p class="dim">none</p>'


def _card(title: str, rows: dict[str, str]) -> str:
    body = "".join(f"<tr><th>{esc(name, 200)}</th><td>{esc(value, 1000)}</td></tr>" for name, value in rows.items())
    body = f"<table>{body}</table>" if rows else '<span class="dim">none</span>'
    return f'<div class="card"><h3>{esc(title, 200)}</h3>{body}</div>'


def _grid(charts: list[str], without: str) -> str:
    shown = "".join(charts)
    return f'<div class="charts">{shown}</div>' if shown else f'<p class="dim">{without}</p>'


SECTIONS = {
    "headline": ("In short", headline),
    "stages": ("Benchmarks by stage", stage_table),
    "curves": ("Curves", _curves),
    "time": ("Where the learner's time goes", _time),
    "histograms": ("Age and length of trained samples", _histograms),
    "writing": ("How the model writes", _writing),
    "side-by-side": ("Answers of the stages side by side", _side_by_side),
    "samples": ("Samples and their votes", _samples),
    "cost": ("Cost of the stages", cost_table),
    "audit": ("Audit of the log", _audit),
    "numbers": ("Numbers and versions", _numbers),
    "config": ("Run file", _config),
}
