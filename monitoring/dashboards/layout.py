"""What all dashboards have: variables, annotations, links to each other, and panels laid out in rows with fixed ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import stat
from grafana_foundation_sdk.models import dashboard

from monitoring.dashboards.panels import ANY_HOST, SOURCE, Panel, scoped
from monitoring.metrics import LearnerMetrics as Learner
from monitoring.metrics import RunMetrics as Run

TAG = "headrace"
WIDTH = 24
NUMBER_HEIGHT, PANEL_HEIGHT = 4, 8


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and the lines of panels below it; the panels of a line share its width equally."""

    title: str
    lines: Sequence[Sequence[Panel]]


class _Mark(dashboard.AnnotationQuery):
    """An annotation that says what happened: Prometheus's annotations have a title that the SDK does not know."""

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "titleFormat": self.name}


class _MarkBuilder(builders.AnnotationQuery):
    def __init__(self, name: str, color: str, expression: str) -> None:
        self._internal = _Mark(
            name=name, datasource=SOURCE, enable=True, icon_color=color, expr=scoped(f"changes({expression}[])")
        )


def new(uid: str, title: str, description: str, rows: Sequence[Row]) -> builders.Dashboard:
    """A dashboard, complete. ``uid`` never changes: links and bookmarks go by it."""
    made = (
        builders.Dashboard(f"Headrace / {title}")
        .uid(uid)
        .description(description)
        .tags([TAG])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .link(_links())
    )
    for variable in _variables():
        made.with_variable(variable)
    for mark in (
        _MarkBuilder("Checkpoint", "green", Learner.checkpoint_seconds.count),
        _MarkBuilder("Weights: broadcast group formed anew", "blue", str(Learner.epochs)),
        _MarkBuilder("A daemon was started again", "red", f"{Run.restarts}{{{ANY_HOST}}}"),
    ):
        made.annotation(mark)
    _lay_out(made, rows)
    return made


def _lay_out(made: builders.Dashboard, rows: Sequence[Row]) -> None:
    """Rows from the top, lines below each other; ids count up in the order of reading."""
    number, top = 1, 0
    for row in rows:
        made.with_row(builders.Row(row.title).id(number).grid_pos(dashboard.GridPos(h=1, w=WIDTH, x=0, y=top)))
        number, top = number + 1, top + 1
        for line in row.lines:
            width = WIDTH // len(line)
            height = NUMBER_HEIGHT if all(isinstance(panel, stat.Panel) for panel in line) else PANEL_HEIGHT
            for place, panel in enumerate(line):
                panel.id(number).grid_pos(dashboard.GridPos(h=height, w=width, x=place * width, y=top))
                made.with_panel(panel)
                number += 1
            top += height


def _variables() -> list[builders.DatasourceVariable | builders.QueryVariable]:
    """Where to ask, the run (one: sums over several mean nothing), and its hosts."""
    return [
        builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
        _labels("run", "Run", f"label_values({Run.up}, run)"),
        _labels("host", "Host", 'label_values(up{run=~"$run"}, host)')
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"])),
    ]


def _labels(name: str, label: str, query: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    )


def _links() -> builders.DashboardLink:
    """All dashboards of the project, with the run and the time that are chosen here."""
    return (
        builders.DashboardLink("Headrace")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(False)
        .include_vars(True)
        .keep_time(True)
    )
