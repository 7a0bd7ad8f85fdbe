"""Shows the views of a run: on a terminal as pages that keys switch between, elsewhere as plain text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from rich.align import Align
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from monitoring.keys import LEFT, RIGHT, undisturbed
from monitoring.live import PLAIN_SECONDS, PlainView
from monitoring.view import PAGES, RunView
from monitoring.views import draw

TAB = "\t"


class Pages(Protocol):
    """Shows one view of a run at a time; ``shown`` is its name."""

    shown: str

    def update(self, view: RunView) -> None: ...

    def press(self, key: str) -> None: ...

    def open(self) -> None: ...

    def close(self) -> None: ...


def turned(shown: str, key: str, back: str = PAGES[0]) -> str:
    """The name of the view to show after ``key``; ``back`` is the one to return to from the help."""
    if key in ("h", "?"):
        return back if shown == "help" else "help"
    if key.isdigit() and 1 <= int(key) <= len(PAGES):
        return PAGES[int(key) - 1]
    if key in (LEFT, RIGHT, TAB):
        at = PAGES.index(back if shown == "help" else shown)
        return PAGES[(at + (-1 if key == LEFT else 1)) % len(PAGES)]
    return shown


class Screen:
    """Pages on the whole terminal; ``close`` restores its former content."""

    def __init__(self, console: Console, shown: str, keys: bool) -> None:
        self.shown = self._back = shown
        self._console, self._keys = console, keys
        self._view: RunView | None = None
        self._live: Live | None = None

    def open(self) -> None:
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._live.start()
        self._draw()

    def update(self, view: RunView) -> None:
        self._view = view
        self._draw()

    def press(self, key: str) -> None:
        self.shown = turned(self.shown, key, self._back)
        if self.shown != "help":
            self._back = self.shown
        self._draw()

    def _draw(self) -> None:
        if self._live is None or self._view is None:
            return
        entries = [(f" {n} {name} ", "reverse" if name == self.shown else "dim") for n, name in enumerate(PAGES, 1)]
        line = Text.assemble(*entries, (" h help  q quit" if self._keys else " Ctrl-C quits", "dim"), no_wrap=True)
        self._live.update(Group(Align.left(line), Text(), draw(self.shown, self._view)), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            with undisturbed():
                self._live.stop()
            self._live = None


class PlainPages:
    """Pages without keys: prints one view every ``PLAIN_SECONDS``, or the overview as the lines of ``PlainView``."""

    def __init__(self, console: Console, shown: str) -> None:
        self.shown = shown
        self._console, self._lines = console, PlainView(console)
        self._due = 0.0

    def open(self) -> None:
        """Does nothing: there is nothing to acquire."""

    def update(self, view: RunView) -> None:
        if self.shown == PAGES[0]:
            self._lines.update(view)
        elif time.monotonic() >= self._due:
            self._due = time.monotonic() + PLAIN_SECONDS
            self._console.print(draw(self.shown, view), markup=False, highlight=False)

    def press(self, key: str) -> None:
        """Does nothing: a printed page cannot be turned."""

    def close(self) -> None:
        """Does nothing: there is nothing to release."""


def open_pages(plain: bool, shown: str, keys: bool, console: Console | None = None) -> Pages:
    """Opened pages for this terminal; plain text if ``plain`` is set or the output is not a terminal."""
    console = console or Console()
    pages: Pages = PlainPages(console, shown) if plain or not console.is_terminal else Screen(console, shown, keys)
    pages.open()
    return pages


def print_once(view: RunView, names: Sequence[str], console: Console | None = None) -> None:
    """Print each named view; without names, the overview as one line."""
    console = console or Console()
    for name in names:
        console.print(draw(name, view), markup=False, highlight=False)
    if not names:
        PlainView(console).update(view)
