"""The report of a run: plots as PNG files, and one self-contained HTML page (no network, all text escaped)."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monitoring.view import clean_text

Series = tuple[list[float], list[float]]
COLOURS = ("#2a6f97", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#5c677d", "#bc6c25")


@dataclass(slots=True)
class Sample:
    """One judged sample to show: question, response, reward, and each rewarder's vote with its why."""

    title: str
    question: str
    text: str
    reward: float
    votes: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class RunReport:
    """All that a report shows. ``series`` are per optimizer step, ``evaluations`` (step, name, value, low, high)."""

    name: str
    summary: dict[str, Any]
    config: str
    steps: list[float] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=dict)
    evaluations: list[tuple[float, str, float, float, float]] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _lines(report: RunReport, title: str, names: Sequence[tuple[str, str]]) -> Any:
    figure, axes = _figure()
    for (key, label), colour in zip(names, COLOURS, strict=False):
        points = [(s, v) for s, v in zip(report.steps, report.series.get(key, []), strict=False) if v == v]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color=colour)
    axes.set_title(title)
    axes.set_xlabel("step")
    if axes.lines:
        axes.legend(frameon=False)
    return figure


def _pass_at_1(report: RunReport) -> Any:
    figure, axes = _figure()
    if report.evaluations:
        steps, _, values, lows, highs = zip(*report.evaluations, strict=True)
        errors = (
            [max(0.0, v - low) for v, low in zip(values, lows, strict=True)],
            [max(0.0, h - v) for v, h in zip(values, highs, strict=True)],
        )
        axes.errorbar(steps, values, yerr=errors, marker="o", capsize=3, color=COLOURS[0])
    axes.set_ylim(0, 1.03)
    axes.set_title("held-out pass@1 (95% interval)")
    axes.set_xlabel("step")
    return figure


def _phases(report: RunReport) -> Any:
    figure, axes = _figure()
    if report.phases and report.steps:
        names = sorted(report.phases, key=lambda n: -sum(report.phases[n]))[: len(COLOURS)]
        axes.stackplot(report.steps, [report.phases[n] for n in names], labels=names, colors=COLOURS)
        axes.legend(frameon=False, loc="upper left", ncols=3, fontsize=8)
    axes.set_title("seconds of each step by phase")
    axes.set_xlabel("step")
    return figure


def figures(report: RunReport) -> dict[str, Any]:
    """The plots by name."""
    return {
        "reward": _lines(report, "reward of all judged samples", [("reward_mean", "reward")] + [(k, k.removeprefix("reward/")) for k in sorted(report.series) if k.startswith("reward/")]),
        "pass_at_1": _pass_at_1(report),
        "response_length": _lines(report, "response length (tokens)", [("response_length_mean", "all judged"), ("trained_length_mean", "trained")]),
        "staleness": _lines(report, "staleness (policy versions)", [("staleness_mean", "mean"), ("staleness_max", "max")]),
        "phases": _phases(report),
    }  # fmt: skip


def write_plots(report: RunReport, directory: Path) -> list[Path]:
    """Write every plot as ``directory/NAME.png``; returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures(report).items():
        paths.append(directory / f"{name}.png")
        figure.savefig(paths[-1])
    return paths


def write_html(report: RunReport, path: Path) -> None:
    """Write the whole report as one file."""
    images = []
    for name, figure in figures(report).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        data = base64.b64encode(buffer.getvalue()).decode()
        images.append(f'<figure><img alt="{name}" src="data:image/png;base64,{data}"></figure>')
    rows = "".join(f"<tr><th>{esc(k)}</th><td>{esc(v)}</td></tr>" for k, v in flatten(report.summary))
    samples = "".join(_sample(s) for s in report.samples)
    page = PAGE.format(
        name=esc(report.name),
        rows=rows,
        images="\n".join(images),
        samples=samples or "<p>none</p>",
        config=esc(report.config),
    )
    path.write_text(page, encoding="utf-8")


def _sample(sample: Sample) -> str:
    votes = "".join(f"<li><b>{esc(name)}</b> {esc(vote)}</li>" for name, vote in sample.votes.items())
    return (
        f"<details><summary>{esc(sample.title)} — reward {sample.reward:.3f}</summary>"
        f"<p>{esc(sample.question)}</p><pre>{esc(sample.text)}</pre><ul>{votes}</ul></details>"
    )


def flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested summary as rows of name and value."""
    out = []
    for key, value in tree.items():
        if isinstance(value, dict):
            out += flatten(value, f"{prefix}{key} · ")
        else:
            out.append((f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)))
    return out


def summary_table(summary: dict[str, Any]) -> Any:
    """The summary for the terminal, as a rich table."""
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in flatten(summary):
        table.add_row(f"[dim]{name}[/dim]", clean_text(value, 200).replace("[", "\\["))
    return table


def esc(value: object) -> str:
    return html.escape(clean_text(str(value), 20_000))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{name} — headrace</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
body {{ max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
h1, h2 {{ font-weight: 600; }}
figure {{ display: inline-block; margin: .5rem; }} img {{ max-width: 100%; background: #fff; border-radius: 6px; }}
table {{ border-collapse: collapse; }} th {{ text-align: left; font-weight: 400; opacity: .7; padding-right: 1.5rem; }}
td {{ font-variant-numeric: tabular-nums; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .7rem; border-radius: 6px; }}
</style></head><body>
<h1>{name}</h1>
<h2>Summary</h2><table>{rows}</table>
<h2>Curves</h2>{images}
<h2>Samples</h2>{samples}
<h2>Run file</h2><pre>{config}</pre>
</body></html>
"""
