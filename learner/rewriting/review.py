"""People's part of a rewriting: rows that lie in ``RUN/review/NAME.jsonl`` for them, and what comes back in ``NAME.reviewed.jsonl``.

A row has an ``id``, the ``question`` and the ``original`` for the reader, and the ``response`` that may be edited. A row that does not come
back, or without a response, is left out of the data. ``headrace review RUN NAME FILE`` checks a file and puts it in its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from broker.errors import DataError
from monitoring.files import replace


def offered(directory: Path, name: str) -> Path:
    """Where the rows of stage ``name`` lie for people."""
    return directory / "review" / f"{name}.jsonl"


def returned(directory: Path, name: str) -> Path:
    """Where they come back."""
    return directory / "review" / f"{name}.reviewed.jsonl"


def offer(directory: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Put the rows there: ``id``, ``messages``, ``original`` and ``response`` of each. Returns where."""
    path = offered(directory, name)
    path.parent.mkdir(exist_ok=True)
    shown = [
        {"id": row["id"], "question": row["messages"][-1]["content"], "original": row["original"], "response": row["response"]}
        for row in rows
    ]  # fmt: skip
    replace(path, _lines(shown))
    return path


def take_back(directory: Path, name: str, file: Path) -> tuple[int, int]:
    """Check a reviewed ``file`` and put it in its place, in one go. Returns how many rows it keeps, of how many. Raises DataError."""
    there = offered(directory, name)
    if not there.exists():
        waiting = sorted(p.stem for p in there.parent.glob("*.jsonl") if not p.stem.endswith(".reviewed"))
        raise DataError(f"stage {name!r} has no rows for review; {', '.join(waiting) or 'no stage'} has")
    known = {row["id"] for row in _read(there)}
    kept = read_reviewed(file, known)
    rows = [{"id": id_, "response": response} for id_, response in kept.items()]
    replace(returned(directory, name), _lines(rows))
    return len(rows), len(known)


def read_reviewed(file: Path, known: set[str]) -> dict[str, str]:
    """The responses that are kept, by row. Raises DataError that names the line and what is wrong with it."""
    found: dict[str, str] = {}
    for number, row in enumerate(_read(file), 1):
        where, id_, response = f"{file} row {number}", row.get("id"), row.get("response")
        if not isinstance(id_, str) or id_ not in known:
            raise DataError(f"{where}: id = {id_!r} is none of the rows that were offered")
        if id_ in found:
            raise DataError(f"{where}: id = {id_!r} comes twice")
        if response is not None and not isinstance(response, str):
            raise DataError(f"{where}: response is a {type(response).__name__}; write text, or leave the row out")
        if response and response.strip():
            found[id_] = response
    if not found:
        raise DataError(f"{file} keeps no row; there would be nothing to train on")
    return found


def _read(file: Path) -> Iterator[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file} line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{file} line {number} is a {type(row).__name__}; it must be an object")
        yield row


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
