"""Opens the data source that a ``[data.NAME]`` table describes."""

from __future__ import annotations

from typing import Any

from broker import plugins
from broker.errors import RunFileError
from broker.runfile import RunFile, parse
from broker.spelling import nearest
from learner.data.clean import Clean
from learner.data.source import DocumentSource, PromptSource
from learner.data.tables import Rows, TableDocuments, TablePrompts, TableRows, read_table
from learner.tables import SourceTable


def open_prompts(name: str, table: SourceTable, file: RunFile) -> PromptSource:
    """A source of prompts. Raises RunFileError for a wrong table, DataError for what cannot be read."""
    source = _open(name, table, file, TablePrompts)
    if not hasattr(source, "row"):
        raise RunFileError(f"[data.{name}] gives documents for supervised training, not prompts")
    return _clean(name, table, file, source, documents=False)


def open_documents(name: str, table: SourceTable, file: RunFile) -> DocumentSource:
    """A source of supervised documents. Raises as ``open_prompts``."""
    source = _open(name, table, file, TableDocuments)
    if not hasattr(source, "document"):
        raise RunFileError(f"[data.{name}] gives prompts, not documents for supervised training")
    return _clean(name, table, file, source, documents=True)


def open_rows(name: str, table: SourceTable, file: RunFile) -> Rows:
    """Rows as they are, by number. Raises as ``open_prompts``."""
    source = _open(name, table, file, TableRows)
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise RunFileError(
            f"[data.{name}] gives no rows by number: name a table (path = ...), or a class with __len__ and __getitem__"
        )
    rows: Rows = source
    return rows


def _clean(name: str, table: SourceTable, file: RunFile, source: Any, documents: bool) -> Any:
    """``source`` without what its table wants left out."""
    if table.decontaminate is None:
        return source
    tables, where = file.tables.get("data", {}), f"[data.{name}] decontaminate"
    against = {}
    for other in table.decontaminate.against:
        if other not in tables or other == name:
            raise RunFileError(
                f"{where}.against names {other!r}, which is no other source{nearest(other, [n for n in tables if n != name])}"
            )
        theirs = parse(tables[other], SourceTable, f"[data.{other}]").model_copy(update={"decontaminate": None})
        against[other] = open_prompts(other, theirs, file)
    return Clean(source, against, table.decontaminate.words, documents)


def _open(name: str, table: SourceTable, file: RunFile, of_table: type) -> Any:
    where = f"[data.{name}]"
    if bool(table.use) == bool(table.path):
        raise RunFileError(f"{where} needs either use = 'module:Class' or path = 'file, directory or Hugging Face id'")
    if table.use:
        return plugins.build(table.use, table.options, file.base, where)
    beside = file.resolve(table.path)
    path = str(beside) if beside.exists() else table.path
    options = dict(table.options)
    split, config = str(options.pop("split", "train")), options.pop("config", None)
    rows = read_table(path, split, None if config is None else str(config))
    return plugins.make(of_table, options, where, rows=rows, where=path)
