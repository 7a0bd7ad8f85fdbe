"""Opens the data source that a ``[data.NAME]`` table describes."""

from __future__ import annotations

import datetime
from typing import Any

from broker import plugins
from broker.errors import RunFileError
from broker.runfile import RunFile, RunTable
from learner.data.files import Rows, read_table
from learner.data.selection import select
from learner.data.source import DocumentSource, PromptSource
from learner.data.tables import TableDocuments, TablePrompts, TableRows
from learner.tables import SourceTable, check_named

READS = "rows"
"""The field of a plug-in class that receives the rows of ``path``; its field ``where`` receives the path."""


def open_prompts(name: str, table: SourceTable, file: RunFile) -> PromptSource:
    """Open a source of prompts. Raises RunFileError for a mistake in ``table``, DataError for unreadable data."""
    source = _open(name, table, file, TablePrompts)
    if not hasattr(source, "row"):
        raise RunFileError(f"[data.{name}] gives documents for supervised training, not prompts")
    chosen: PromptSource = _selected(name, table, file, source, False)
    return chosen


def open_documents(name: str, table: SourceTable, file: RunFile) -> DocumentSource:
    """Open a source of supervised documents. Raises the same errors as ``open_prompts``."""
    source = _open(name, table, file, TableDocuments)
    if not hasattr(source, "document"):
        raise RunFileError(f"[data.{name}] gives prompts, not documents for supervised training")
    chosen: DocumentSource = _selected(name, table, file, source, True)
    return chosen


def open_rows(name: str, table: SourceTable, file: RunFile) -> Rows:
    """Open a source as plain rows by number. Raises the same errors as ``open_prompts``."""
    source = _open(name, table, file, TableRows)
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise RunFileError(
            f"[data.{name}] gives no rows by number: name a table (path = ...), or a class with __len__ and __getitem__"
        )
    rows: Rows = source
    return rows


def _selected(name: str, table: SourceTable, file: RunFile, source: Any, documents: bool) -> Any:
    """The source reduced by those options of ``select`` that need only its own rows; ``learner.chosen`` applies the
    others, which need other sources or the log.
    """
    cutoff = file.table("run", RunTable).cutoff if table.select.fresh else ""
    day = datetime.date.fromisoformat(cutoff) if cutoff else None
    return select(source, table.select, day, f"[data.{name}]", documents)


def _open(name: str, table: SourceTable, file: RunFile, of_table: type) -> Any:
    where = f"[data.{name}]"
    check_named(table, where)
    if not table.path:
        made = plugins.load(table.use, file.base, where)
        given = {"base": file.base} if "base" in (plugins.option_names(made) or ()) else {}  # to find files of its own
        return plugins.make(made, table.options, f"{where} use = {table.use!r}", **given)
    kind = of_table
    if table.use:
        kind = plugins.load(table.use, file.base, where)
        if READS not in (plugins.option_names(kind) or ()):
            raise RunFileError(
                f"{where} use = {table.use!r} reads no table: take path = {table.path!r} out, or name a class with a field rows"
            )
    beside = file.resolve(table.path)
    path = str(beside) if beside.exists() else table.path
    options = dict(table.options)
    split, config = str(options.pop("split", "train")), options.pop("config", None)
    rows = read_table(path, split, None if config is None else str(config))
    return plugins.make(kind, options, where, rows=rows, where=path)
