"""Opens the data source that a ``[data.NAME]`` table describes."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from broker.errors import DataError, RunFileError
from broker.runfile import RunFile, nearest
from learner.config import SourceTable
from learner.data.source import DocumentSource, PromptSource
from learner.data.tables import TableDocuments, TablePrompts, read_table


def open_prompts(name: str, table: SourceTable, file: RunFile) -> PromptSource:
    """A source of prompts. Raises RunFileError for a wrong table, DataError for what cannot be read."""
    source = _open(name, table, file, TablePrompts)
    if not hasattr(source, "row"):
        raise RunFileError(f"[data.{name}] gives documents for supervised training, not prompts")
    return source


def open_documents(name: str, table: SourceTable, file: RunFile) -> DocumentSource:
    """A source of supervised documents. Raises as ``open_prompts``."""
    source = _open(name, table, file, TableDocuments)
    if not hasattr(source, "document"):
        raise RunFileError(f"[data.{name}] gives prompts, not documents for supervised training")
    return source


def _open(name: str, table: SourceTable, file: RunFile, of_table: type) -> Any:
    where = f"[data.{name}]"
    if bool(table.use) == bool(table.path):
        raise RunFileError(f"{where} needs either use = 'module:Class' or path = 'file, directory or Hugging Face id'")
    if table.use:
        return _build(_load_class(table.use, where), table.options, where)
    beside = file.resolve(table.path)
    path = str(beside) if beside.exists() else table.path
    options = dict(table.options)
    split, config = str(options.pop("split", "train")), options.pop("config", None)
    rows = read_table(path, split, None if config is None else str(config))
    return _build(of_table, {"rows": rows, "where": path, **options}, where, hidden=("rows", "where"))


def _load_class(use: str, where: str) -> type:
    module, _, name = use.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise RunFileError(f"{where} use = {use!r} cannot be loaded: {error}") from error
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise RunFileError(f"{where} use = {use!r} is no dataclass")
    return found


def _build(kind: type, options: dict[str, Any], where: str, hidden: tuple[str, ...] = ()) -> Any:
    """An instance of dataclass ``kind``; an option that it has no field for is refused."""
    known = [f.name for f in dataclasses.fields(kind) if f.init]
    for option in options:
        if option not in known:
            raise RunFileError(
                f"{where} unknown key {option!r}{nearest(option, [k for k in known if k not in hidden])}"
            )
    try:
        return kind(**options)
    except (TypeError, ValueError, DataError) as error:
        raise RunFileError(f"{where}: {error}") from error
