"""The live view of a run: a rich display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import time
from typing import Protocol

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from monitoring.view import RunView, clean_text, sparkline

PLAIN_SECONDS = 10.0
SECONDS = re.compile(r" \(\d+ s\)")
STATES = {"running": "green", "restarting": "yellow", "gone": "red"}


class LiveView(Protocol):
    """Shows a run while it goes on."""

    def update(self, view: RunView) -> None: ...

    def note(self, line: str) -> None: ...

    def close(self) -> None: ...


class PlainView:
    """Prints a line at each new stage, evaluation or note, and otherwise every ``PLAIN_SECONDS``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._due = 0.0
        self._shown: tuple[object, ...] = ()
        self._noted: list[str] = []

    def update(self, view: RunView) -> None:
        now, what = time.monotonic(), (view.stage, len(view.evaluations), len(view.notes))
        if what == self._shown and now < self._due:
            return
        if view.evaluations and len(view.evaluations) != (self._shown[1] if self._shown else 0):
            name, value, low, high = view.evaluations[-1]
            self.note(f"held-out {name}: pass@1 {value:.3f} [{low:.3f}, {high:.3f}]")
        for note in view.notes:
            if timeless(note) not in self._noted:
                self.note(note)
        self._noted = [timeless(note) for note in view.notes]
        self._shown, self._due = what, now + PLAIN_SECONDS
        self.note(one_line(view))

    def note(self, line: str) -> None:
        self._console.print(clean_text(line), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Does nothing: there is nothing to release."""


class RichView:
    """A display that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._live.start()

    def update(self, view: RunView) -> None:
        self._live.update(render(view))

    def note(self, line: str) -> None:
        self._live.console.print(clean_text(line), markup=False, highlight=False)

    def close(self) -> None:
        self._live.stop()


def timeless(note: str) -> str:
    """A note without its duration in seconds, so that the same note is printed only once."""
    return SECONDS.sub("", note)


def open_view(plain: bool, console: Console | None = None) -> LiveView:
    """A view for this terminal; plain lines if ``plain`` is set or the output is not a terminal."""
    console = console or Console()
    return PlainView(console) if plain or not console.is_terminal else RichView(console)


def one_line(view: RunView) -> str:
    """The state of a run in one line."""
    parts = [f"[{clock(view.elapsed)}] stage {view.stage_number + 1}/{view.stages} {view.stage}"]
    if view.steps:
        parts.append(f"step {view.step}/{view.steps}")
    parts += [f"{name} {value}" for name, value in facts(view)]
    alive = sum(d.state == "running" for d in view.daemons)
    parts.append(f"daemons {alive}/{len(view.daemons)}")
    return "  ".join(parts)


def facts(view: RunView) -> list[tuple[str, str]]:
    """The most important numbers that the view has, as (name, formatted value)."""
    wanted = (
        ("reward", "reward_mean", "{:.3f}"),
        ("loss", "loss", "{:.3f}"),
        ("accuracy", "accuracy", "{:.3f}"),
        ("level", "level", "{:.2f}"),
        ("length", "response_length_mean", "{:.0f}"),
        ("staleness", "staleness_mean", "{:.2f}"),
        ("entropy", "entropy", "{:.3f}"),
    )
    out = [(name, form.format(view.metrics[key])) for name, key, form in wanted if key in view.metrics]
    if view.evaluations:
        out.append(("held-out pass@1", f"{view.evaluations[-1][1]:.3f}"))
    if view.generated_per_second:
        out.append(("generated", f"{view.generated_per_second:,.0f} tok/s"))
    if view.trained_per_second:
        out.append(("trained", f"{view.trained_per_second:,.0f} tok/s"))
    return out


def render(view: RunView) -> RenderableType:
    """The whole display."""
    notes = [Text(clean_text(note, 200), style="yellow") for note in view.notes[-3:]]
    return Panel(Group(head(view), overview(view), *notes), title="headrace", border_style="dim")


def head(view: RunView) -> Text:
    """The first line: name of the run, stage, elapsed time."""
    return Text.assemble(
        (clean_text(view.name, 80), "bold"),
        f"  stage {view.stage_number + 1}/{view.stages} ",
        (clean_text(view.stage, 80), "cyan"),
        f"  {clock(view.elapsed)}",
    )


def overview(view: RunView) -> RenderableType:
    """The run's progress, numbers, queues and daemons."""
    cells = [Text.assemble((f"{name} ", "dim"), (value, "bold"), no_wrap=True) for name, value in facts(view)]
    rows: list[RenderableType] = [bar(view.step, view.steps)] if view.steps else []
    rows.append(Columns(cells, padding=(0, 3)))
    if view.rewards:
        rows.append(Text.assemble(("reward  ", "dim"), sparkline(view.rewards)))
    if view.evaluations:
        shown = "  ".join(f"{clean_text(name, 60)} {value:.3f}" for name, value, _, _ in view.evaluations[-5:])
        rows.append(Text.assemble(("held-out  ", "dim"), shown))
    if view.queues:
        waiting = "  ".join(f"{clean_text(name, 40)} {count}" for name, count in view.queues.items())
        rows.append(Text.assemble(("waiting  ", "dim"), waiting))
    daemons = Text()
    for daemon in view.daemons:
        daemons.append("● ", style=STATES.get(daemon.state, "red"))
        again = f" ({daemon.restarts} restarts)" if daemon.restarts else ""
        daemons.append(f"{clean_text(daemon.name, 40)}{again}  ")
    return Group(*rows, daemons)


def bar(done: int, total: int, width: int = 40) -> Text:
    """A progress bar of ``width`` characters, followed by ``done/total``."""
    filled = min(width, round(width * done / total))
    return Text.assemble(("━" * filled, "green"), ("━" * (width - filled), "dim"), f" {done}/{total}")


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
