"""The plots of a run as PNG files, for slides and mails; the page draws its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monitoring.report.data import RunReport

COLOURS = ("#2a6f97", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#5c677d", "#bc6c25")


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
