"""The views of a run that ``headrace top`` switches between, each drawn from a RunView."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from monitoring.live import STATES, clock, head, overview
from monitoring.view import PAGES, RunView, clean_text

STEP_COLUMNS = (
    ("reward", "reward_mean", "{:.3f}"),
    ("loss", "loss", "{:.4f}"),
    ("stale", "staleness_mean", "{:.2f}"),
    ("length", "response_length_mean", "{:.0f}"),
    ("entropy", "entropy", "{:.3f}"),
    ("grad norm", "grad_norm", "{:.3g}"),
    ("seconds", "step_seconds", "{:.2f}"),
)
STEPS, LETTERS, SAMPLE_CHARACTERS = 20, 10, 400
NONE = "-"


def draw(name: str, view: RunView) -> RenderableType:
    """View ``name``, with the run's first line above it and the newest notes below it."""
    notes = [Text(clean_text(note, 200), style="yellow") for note in view.notes[-3:]]
    return Group(head(view), VIEWS[name](view), *notes)


def daemons(view: RunView) -> RenderableType:
    """The daemons, each with its policy version, speed and busy share."""
    table = _table("", "daemon", "role", "pid>", "version>", "restarts>", "rate>", "in flight>", "slots>", "busy>")
    for d in view.daemons:
        table.add_row(
            Text("●", style=STATES.get(d.state, "red")),
            clean(d.name, 40),
            clean(d.role, 20),
            str(d.pid or NONE),
            known(d.version),
            str(d.restarts),
            NONE if d.rate is None else f"{d.rate:,.1f} {d.unit}",
            known(d.inflight),
            known(d.slots),
            NONE if d.busy is None else f"{d.busy:.0%}",
        )
    return table if view.daemons else Text("no daemon of this run has announced itself", style="dim")


def queues(view: RunView) -> RenderableType:
    """How many records each consumer group has yet to read, and the age of the oldest."""
    table = _table("group", "topic", "behind>", "oldest>")
    for q in view.lags:
        table.add_row(clean(q.group, 40), clean(q.topic, 40), f"{q.lag:,}", NONE if q.age is None else clock(q.age))
    return Group(table, Text(f"dead letters waiting: {view.letters_waiting:,}"))


def steps(view: RunView) -> RenderableType:
    """The last ``STEPS`` steps, newest first."""
    table = _table("version>", "stage", "step>", *(f"{title}>" for title, _, _ in STEP_COLUMNS), gap=1)
    for s in view.history[: -STEPS - 1 : -1]:
        numbers = [form.format(s.metrics[key]) if key in s.metrics else NONE for _, key, form in STEP_COLUMNS]
        table.add_row(str(s.version), clean(s.stage, 30), str(s.step), *numbers)
    return table if view.history else Text("no step yet", style="dim")


def letters(view: RunView) -> RenderableType:
    """The last ``LETTERS`` dead letters, newest first."""
    if not view.letters:
        return Text("no dead letters", style="dim")
    table = _table("offset>", "at", "record", "group", "by", "became", "reason")
    for letter in view.letters[: -LETTERS - 1 : -1]:
        at = time.strftime("%H:%M:%S", time.localtime(letter.at))
        texts = (clean(t, 60) for t in (letter.record, letter.group, letter.worker, letter.became))
        table.add_row(str(letter.offset), at, *texts, clean(letter.reason, 200))
    return table


def samples(view: RunView) -> RenderableType:
    """Samples of the last step: what the model wrote, and its votes."""
    if not view.samples:
        return Text("no group has been trained yet", style="dim")
    rows: list[RenderableType] = []
    for s in view.samples:
        rows.append(Text.assemble((f"{s.reward:.3f}  ", "bold"), (clean_text(s.title, 80), "cyan")))
        rows.append(Text(clean_text(s.votes, 200), style="dim"))
        rows.append(Text(" ".join(clean_text(s.text, SAMPLE_CHARACTERS).split()) + "\n"))
    return Group(*rows)


def keys_help(view: RunView) -> RenderableType:
    """The help page: what each key does."""
    lines = [f"{number}  {name}" for number, name in enumerate(PAGES, 1)]
    return Text("\n".join([*lines, "", "left, right, Tab  the view beside", "h  this help, and back", "q  leave; the run goes on"]))  # fmt: skip


def clean(text: str, limit: int) -> Text:
    """A text that we did not write, made safe to print and put on one line."""
    return Text(clean_text(text, limit).replace("\n", " "))


def known(number: int | None) -> str:
    return NONE if number is None else str(number)


def _table(*columns: str, gap: int = 2) -> Table:
    """A table without borders; a column whose name ends in ``>`` is right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, gap, 0, 0))
    for name in columns:
        table.add_column(name.removesuffix(">"), justify="right" if name.endswith(">") else "left")
    return table


DRAWN = (overview, daemons, queues, steps, letters, samples)
VIEWS: dict[str, Callable[[RunView], RenderableType]] = {
    **dict(zip(PAGES, DRAWN, strict=True)),
    "help": keys_help,
}
