"""Panels in the project's own terms: what is asked, in which unit, from which value on it is bad, and what to do then.

Expressions are written without filters: ``scoped`` adds them to every metric. A window is written as ``[]``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap as heatmaps
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline
from grafana_foundation_sdk.builders import timeseries as graphs
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring.rows import Row

Panel = graphs.Panel | stat.Panel | heatmaps.Panel | statetimeline.Panel
P = TypeVar("P", graphs.Panel, stat.Panel, heatmaps.Panel, statetimeline.Panel)
SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
METRIC = re.compile(r"\b((?:headrace_|sglang:|process_)\w+|up\b)(?:\{([^}]*)\})?")
ANY_HOST = 'host=~".+"'
"""Write it into the braces of a metric that is seen from another host than the one that it is about."""


def scoped(expression: str) -> str:
    """``expression`` with the dashboard's variables: each metric of the chosen run and hosts, each ``[]`` the window of a rate."""

    def narrow(found: re.Match[str]) -> str:
        own = found[2] or ""
        filters = ['run=~"$run"', *([] if "host=" in own else ['host=~"$host"']), *([own] if own else [])]
        return f"{found[1]}{{{','.join(filters)}}}"

    return METRIC.sub(narrow, expression).replace("[]", "[$__rate_interval]")


def or_zero(expression: str, *labels: str) -> str:
    """``expression`` of events that may never have happened: zero, named ``none``, while the run is scraped and there was none."""
    zero = "0 * count(up)"
    for label in labels:
        zero = f'label_replace({zero}, "{label}", "none", "", "")'
    return f"{expression} or on() {zero}"


def quantiles(histogram: Row[Any] | str, by: str = "", shares: Sequence[float] = (0.5, 0.9, 0.99)) -> tuple[Query, ...]:
    """The quantiles of a histogram over the window, apart by the label ``by``."""
    labels = f"le, {by}" if by else "le"
    name = f"{{{{{by}}}}} p%g" if by else "p%g"
    return tuple(
        Query(f"histogram_quantile({share}, sum by ({labels}) (rate({bucket_of(histogram)}[])))", name % (100 * share))
        for share in shares
    )


def bucket_of(histogram: Row[Any] | str) -> str:
    """The series of a histogram's buckets; another program's histogram is given by its name."""
    return f"{histogram}_bucket" if isinstance(histogram, str) else histogram.bucket


@dataclass(frozen=True, slots=True)
class Query:
    """One metric, or an expression made of metrics, and the name of its series: text with ``{{label}}`` in it."""

    expression: Row[Any] | str
    legend: str


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on a value is a warning or bad: upwards, or downwards if ``falling``."""

    warning: float
    bad: float | None = None
    falling: bool = False

    def steps(self) -> list[dashboard.Threshold]:
        levels = [(self.warning, "orange"), *([(self.bad, "red")] if self.bad is not None else [])]
        if not self.falling:
            return [dashboard.Threshold(None, "green"), *(dashboard.Threshold(*level) for level in levels)]
        colors = [*(color for _, color in reversed(levels)), "green"]
        values = [None, *(value for value, _ in reversed(levels))]
        return [dashboard.Threshold(value, color) for value, color in zip(values, colors, strict=True)]


def above(warning: float, bad: float | None = None) -> Limits:
    return Limits(warning, bad)


def below(warning: float, bad: float | None = None) -> Limits:
    return Limits(warning, bad, falling=True)


def graph(
    title: str, unit: str, description: str, *queries: Query, limits: Limits | None = None, stacked: bool = False,
    least: float | None = 0.0, most: float | None = None, logarithmic: bool = False,
) -> graphs.Panel:  # fmt: skip
    """Lines over time. ``least`` and ``most`` bound the axis (None: as the values are)."""
    panel = _dressed(graphs.Panel(), title, unit, description, queries, limits)
    panel.fill_opacity(60 if stacked else 8).line_width(1).show_points(common.VisibilityMode.NEVER)
    panel.legend(
        common_builders.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel.tooltip(
        common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    )
    if stacked:
        panel.stacking(common_builders.StackingConfig().group("A").mode(common.StackingMode.NORMAL))
    if limits is not None:
        panel.thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
    if logarithmic:
        panel.scale_distribution(common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10))
    elif least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    return panel


def number(
    title: str, unit: str, description: str, query: Query, limits: Limits | None = None, empty: str = "no data"
) -> stat.Panel:
    """The newest value, large, above its course. ``empty`` is shown where there is none."""
    panel = _dressed(stat.Panel(), title, unit, description, [query], limits)
    panel.graph_mode(common.BigValueGraphMode.AREA).no_value(empty)
    panel.color_mode(common.BigValueColorMode.NONE if limits is None else common.BigValueColorMode.VALUE)
    return panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))


def heatmap(title: str, unit: str, description: str, histogram: Row[Any] | str) -> heatmaps.Panel:
    """How many observations of a histogram fell into each of its buckets, over time; ``unit`` is that of the buckets' bounds."""
    query = Query(f"sum by (le) (increase({bucket_of(histogram)}[]))", "{{le}}")
    panel = _dressed(heatmaps.Panel(), title, unit, description, [query], None, PromQueryFormat.HEATMAP)
    panel.calculate(False).cell_gap(1).show_legend().y_axis(heatmaps.YAxisConfig().unit(unit))
    panel.color(heatmaps.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64).fill("orange"))
    return panel.mode(common.TooltipDisplayMode.SINGLE)


def states(title: str, description: str, query: Query, names: dict[str, tuple[str, str]]) -> statetimeline.Panel:
    """A band a series; ``names`` tells by value its text and its colour."""
    panel = _dressed(statetimeline.Panel(), title, "none", description, [query], None)
    options = {value: dashboard.ValueMappingResult(text=text, color=color) for value, (text, color) in names.items()}
    panel.mappings([dashboard.ValueMap(options)])
    panel.color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    return panel.show_value(common.VisibilityMode.NEVER).merge_values(True).row_height(0.8).fill_opacity(80)


def _dressed(
    panel: P, title: str, unit: str, description: str, queries: Sequence[Query], limits: Limits | None,
    form: PromQueryFormat = PromQueryFormat.TIME_SERIES,
) -> P:  # fmt: skip
    """``panel`` with what all kinds have."""
    steps = limits.steps() if limits is not None else [dashboard.Threshold(None, "green")]
    panel.title(title).unit(unit).description(description).datasource(SOURCE)
    panel.thresholds(builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps))
    for place, query in enumerate(queries):
        panel.with_target(
            prometheus.Dataquery()
            .ref_id(chr(ord("A") + place))
            .expr(scoped(str(query.expression)))
            .legend_format(query.legend)
            .format(form)
            .datasource(SOURCE)
            .range()
        )
    return panel
