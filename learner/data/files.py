"""Rows by number from JSON lines, Parquet, CSV, or a Hugging Face data set."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from broker.errors import DataAway, DataError

CELL = 1 << 24  # characters in a CSV cell at most
FILES = (".jsonl", ".json", ".parquet", ".csv")


class Rows(Protocol):
    """Rows by number from 0, each a mapping of column names to values."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Mapping[str, Any]: ...


class JsonLines:
    """Rows of a JSON lines file. Only their positions are kept in memory; a row is parsed when it is read.

    If the file is edited, it is scanned again, so that a corrected row is read in its new form. The number of rows
    stays what it was when the file was opened. Raises DataError for a row that cannot be read or is not an object.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._look()
        self._count = len(self._places)

    def _look(self) -> None:
        self._places: list[tuple[int, int]] = []  # byte offset, line number
        at = 0
        with self._path.open("rb") as file:
            self._seen = _seen(os.fstat(file.fileno()))
            for number, line in enumerate(file, 1):
                if line.strip():
                    self._places.append((at, number))
                at += len(line)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        try:
            with self._path.open("rb") as file:
                if _seen(os.fstat(file.fileno())) != self._seen:
                    self._look()
                if number >= len(self._places):
                    raise DataError(f"{self._path} row {number} is gone: the file has {len(self._places)} rows now")
                at, line = self._places[number]
                file.seek(at)
                raw = file.readline()
        except OSError as error:
            raise DataError(f"{self._path} row {number} cannot be read: {error.strerror}") from error
        try:
            row = json.loads(raw)
        except ValueError as error:
            raise DataError(f"{self._path} line {line} is no JSON: {error}") from error
        except RecursionError:
            raise DataError(f"{self._path} line {line} is nested too deep") from None
        if not isinstance(row, dict):
            raise DataError(f"{self._path} line {line} is a {type(row).__name__}; it must be an object")
        return row


def _seen(status: os.stat_result) -> tuple[int, int, int]:
    """A fingerprint that changes if the file is edited or replaced."""
    return status.st_ino, status.st_size, status.st_mtime_ns


class CommaSeparated:
    """Rows of a CSV file with column names in the first line, all in memory; every cell is text.

    Raises DataError for invalid CSV, and for a row with more cells than there are names.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                csv.field_size_limit(CELL)
                reader = csv.DictReader(file)
                self._rows = list(reader)
        except (csv.Error, UnicodeError) as error:
            raise DataError(f"{path} is no CSV: {error}") from error
        for number, row in enumerate(self._rows):
            if None in row:
                raise DataError(f"{path} row {number} has more cells than the first line has names")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        return self._rows[number]


def read_table(path: str, split: str = "train", config: str | None = None) -> Rows:
    """The rows at ``path``: ``*.jsonl``, ``*.json`` (JSON lines too), ``*.parquet``, ``*.csv`` with column names in the
    first line, the directory of a saved data set, or a Hugging Face id.

    ``config`` selects one of several configurations of a Hugging Face data set (``main`` of ``openai/gsm8k``). Raises
    DataError; DataAway, a kind of it, if the data is not on this machine and Hugging Face cannot be reached.
    """
    place = Path(path)
    if not place.exists() and (place.suffix in FILES or path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise DataError(f"data {path!r} does not exist; relative paths start from the run file's directory")
    try:
        if place.suffix in (".jsonl", ".json") and place.is_file():
            return JsonLines(place)
        if place.suffix == ".csv" and place.is_file():
            return CommaSeparated(place)
    except OSError as error:
        raise DataError(f"data {path!r} cannot be read: {error.strerror}") from error
    import datasets

    try:
        if place.suffix == ".parquet" and place.is_file():
            return datasets.Dataset.from_parquet(path)
        if place.is_dir() and ((place / "dataset_info.json").exists() or (place / "dataset_dict.json").exists()):
            found = datasets.load_from_disk(path)
        else:
            found = datasets.load_dataset(path, config)
    except ConnectionError as error:
        raise DataAway(f"data {path!r} is not on this machine, and Hugging Face cannot be reached") from error
    except Exception as error:  # the library raises many types of errors; each means that there is no such data
        raise DataError(
            f"data {path!r} cannot be read: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    if isinstance(found, dict):
        if split not in found:
            raise DataError(f"data {path!r} has no split {split!r}; it has {', '.join(found)}")
        found = found[split]
    return found
