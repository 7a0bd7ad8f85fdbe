"""Reads the hidden tests of a task, in the forms that data sets use, from a sample's metadata or its answer (JSON).

A program that reads and prints; a function, with its arguments and result; the same in two lists:

    {"tests": [{"input": "1 2", "output": "3"}], "language": "cpp", "time_limit": 1.0, "memory_limit": 256}
    {"tests": [{"input": [[2, 7], 9], "output": [0, 1]}], "function": "Solution.twoSum"}
    {"inputs": [...], "outputs": [...], "fn_name": "twoSum"}

``program`` is a faulty program that the response must repair; ``inplace`` is the index of the argument whose changed
value is the result; ``checker`` and ``tolerance`` say how outputs are compared. Limits are in seconds of processor time
and in MiB; a test may have its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker.errors import MessageError
from broker.messages import Trajectory

TESTS = ("tests", "test_cases", "official_tests", "inputs")
FUNCTION = ("function", "fn_name", "entry_point")


@dataclass(frozen=True, slots=True)
class Case:
    """One test. ``given`` is text for a program, arguments for a function. A limit of 0 means the rewarder's."""

    given: Any
    expected: Any
    seconds: float = 0.0
    memory_mb: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """All tests of a prompt. ``prelude``: import lines that run before the program of a function."""

    cases: tuple[Case, ...]
    language: str = ""
    function: str = ""
    inplace: int | None = None
    checker: str = ""
    tolerance: float | None = None
    program: str | None = None
    prelude: str = ""


def read_task(sample: Trajectory) -> Task | None:
    """The task of a sample; None if it has none. Raises MessageError, which names the field, for unusable tests."""
    for source in (sample.metadata, _json(sample.answer)):
        if isinstance(source, list) and source and all(isinstance(t, dict) and "input" in t for t in source):
            source = {"tests": source}
        if isinstance(source, Mapping) and any(source.get(key) for key in TESTS):
            return _task({**sample.metadata, **source})
    return None


def _json(text: str | None) -> Any:
    if not text or text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _task(raw: Mapping[str, Any]) -> Task:
    function = next((str(raw[key]) for key in FUNCTION if raw.get(key)), "")
    seconds, memory = _number(raw, "time_limit", 0.0), _number(raw, "memory_limit", 0.0)
    rows = next(raw[key] for key in TESTS if raw.get(key))
    if isinstance(rows, str):
        rows = _json(rows)
    if isinstance(rows, Mapping) or raw.get("inputs"):
        rows = _paired(rows if isinstance(rows, Mapping) else raw)
    if not isinstance(rows, Sequence) or not rows:
        raise MessageError("tests must be a list of {input, output}, or inputs and outputs")
    cases = tuple(_case(row, place, bool(function), seconds, int(memory)) for place, row in enumerate(rows))
    inplace, program = raw.get("inplace"), raw.get("program")
    if inplace is not None and type(inplace) is not int:
        raise MessageError(f"inplace is {inplace!r}; it must be the place of an argument")
    tolerance = _number(raw, "tolerance", None)
    return Task(
        cases, str(raw.get("language") or ""), function, inplace, str(raw.get("checker") or ""), tolerance,
        None if program is None else str(program),
    )  # fmt: skip


def _paired(raw: Mapping[str, Any]) -> list[Any]:
    inputs, outputs = raw.get("inputs"), raw.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise MessageError("inputs and outputs must be lists of one length")
    return [{"input": i, "output": o} for i, o in zip(inputs, outputs, strict=True)]


def _case(row: Any, place: int, called: bool, seconds: float, memory: int) -> Case:
    if not isinstance(row, Mapping) or "input" not in row or "output" not in row:
        raise MessageError(f"tests[{place}] is {str(row)[:80]!r}; it must have input and output")
    given, expected = row["input"], row["output"]
    if called and isinstance(given, str):
        given = _arguments(given, place)
    if called and not isinstance(given, list | dict):
        raise MessageError(
            f"tests[{place}].input is {str(given)[:80]!r}; a function needs a list or table of arguments"
        )
    if not called:
        given, expected = _text(given, f"tests[{place}].input"), _text(expected, f"tests[{place}].output")
    seconds, memory = _number(row, "time_limit", seconds), int(_number(row, "memory_limit", memory))
    return Case(given, expected, seconds, memory)


def _arguments(text: str, place: int) -> Any:
    """Arguments written as JSON: a list or table of them, or one per line. Raises MessageError."""
    try:
        value = json.loads(text)
        return value if isinstance(value, list | dict) else [value]
    except RecursionError:
        raise MessageError(f"tests[{place}].input is nested too deeply") from None
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        raise MessageError(f"tests[{place}].input is {text[:80]!r}; arguments must be JSON") from None


def _text(value: Any, name: str) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise MessageError(f"{name} is {str(value)[:80]!r}; a program reads and prints text (or name the function)")
    return value


def _number(raw: Mapping[str, Any], key: str, default: Any) -> Any:
    value = raw.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise MessageError(f"{key} is {value!r}; it must be a number of at least 0")
    return value
