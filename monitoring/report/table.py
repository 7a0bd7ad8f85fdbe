"""The summary of a run for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from monitoring.report.data import SHOWN_ABOVE, flatten
from monitoring.view import clean_text


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Name and value of every number, as a rich table."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in flatten({key: part for key, part in summary.items() if key not in SHOWN_ABOVE}):
        table.add_row(f"[dim]{name}[/dim]", clean_text(value, 200).replace("[", "\\["))
    return table
