"""LiveCodeBench (code generation): a task, public tests, and private tests that are packed.

Columns: ``question_title``, ``question_content``, ``starter_code``, ``difficulty``, ``platform``, ``question_id``, ``contest_date``, ``metadata`` (JSON with
``func_name``), ``public_test_cases`` (JSON: a list of {input, output, testtype}), ``private_test_cases`` (the same JSON, plain or packed).

Packed is base64 of zlib of a *pickled* text. Nothing is ever unpickled here: ``text_of_pickle`` reads the opcodes and takes a pickle
that is one text and nothing else; any other is refused. What unpacks to more than ``MOST_BYTES`` is refused too.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from broker.errors import DataError
from broker.wire import Json
from learner.data.benchmarks.base import Asked, Benchmark, Cells

MOST_BYTES = 256 << 20
TEXTS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"}
AROUND = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"}
PROGRAM = "{question}\n\nWrite a Python program that reads from standard input and prints to standard output. Give it in one block of code (```python)."
FUNCTION = "{question}\n\nComplete this code, and give all of it in one block of code (```python):\n\n```python\n{starter}\n```"


@dataclass(frozen=True, kw_only=True)
class LiveCodeBench(Benchmark):
    """Programs are judged by the private tests and, with ``public``, the public ones too. A row's date is that of its contest.

    ``most_tests`` bounds how many tests a row carries, those at the front (0: all): tests travel with every sample of the row. ``template`` is for tasks
    that read and print, ``function_template`` for those that complete ``{starter}``.
    """

    judged_by: ClassVar[tuple[str, ...]] = ("rewarders.code:CodeTests",)
    template: str = PROGRAM
    function_template: str = FUNCTION
    public: bool = True
    most_tests: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{question}" not in self.function_template:
            raise DataError(f"function_template = {self.function_template!r} must hold {{question}}")
        if self.most_tests < 0:
            raise DataError(f"most_tests = {self.most_tests}; it must be at least 0 (0: all)")

    def asked(self, cells: Cells, number: int) -> Asked:
        tests = _tests(cells.find("public_test_cases"), cells.place, "public_test_cases") if self.public else []
        tests += _tests(cells.find("private_test_cases"), cells.place, "private_test_cases")
        if not tests:
            raise DataError(f"{cells.place} has no tests in 'public_test_cases' or 'private_test_cases'")
        kinds = {test["testtype"] for test in tests}
        if len(kinds) != 1 or not kinds <= {"stdin", "functional"}:
            raise DataError(
                f"{cells.place} has tests of type {', '.join(sorted(kinds))}; they must all be 'stdin' or all 'functional'"
            )
        tests = tests[: self.most_tests or None]
        starter = str(cells.find("starter_code") or "")
        about: dict[str, Json] = {
            "tests": [_case(t, cells.place, kinds == {"functional"}) for t in tests],
            "language": "python",
        }
        template = ""
        if kinds == {"functional"}:
            about["function"] = _function(cells, starter)
            template = self.function_template.replace("{starter}", starter)
        about["id"] = str(cells.find("question_id") or number)
        kind = str(cells.find("difficulty") or "code")
        return Asked(cells.text("question_content"), None, kind, about, cells.date("contest_date"), template)


def _tests(packed: Any, place: str, column: str) -> list[dict[str, str]]:
    """The tests in a column, which is JSON, or packed JSON, or a list already. Raises DataError."""
    where = f"{place} column {column!r}"
    found = packed or []
    if isinstance(found, str):
        text = found if found.lstrip()[:1] == "[" else unpacked(found, where)
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is no JSON: {str(error)[:80]}") from error
    if not isinstance(found, list):
        raise DataError(f"{where} is a {type(found).__name__}, not a list of tests")
    for test in found:
        fields = [test.get(key) for key in ("input", "output")] if isinstance(test, Mapping) else [None]
        if not all(isinstance(field, str) for field in fields):
            raise DataError(f"{where} holds {str(test)[:80]!r}; a test has input and output as text, and testtype")
    return [{**test, "testtype": str(test.get("testtype", "stdin"))} for test in found]


def unpacked(text: str, where: str, most: int = MOST_BYTES) -> str:
    """The text in base64 of zlib of a pickled text, or of zlib of the plain text. Raises DataError, which begins with ``where``."""
    try:
        squeezed = base64.b64decode(text, validate=True)
        reader = zlib.decompressobj()
        raw = reader.decompress(squeezed, most + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise DataError(f"{where} is neither JSON nor base64 of zlib: {error}") from error
    if len(raw) > most:
        raise DataError(f"{where} unpacks to more than {most:,} bytes")
    if not reader.eof:
        raise DataError(f"{where} is cut off")
    try:
        return raw.decode("utf-8") if raw.lstrip()[:1] == b"[" else text_of_pickle(raw)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def text_of_pickle(raw: bytes) -> str:
    """The text that a pickle of exactly one text holds; nothing of it is executed. Raises ValueError for a pickle of anything else."""
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(raw):
            if opcode.name in TEXTS:
                texts.append(str(argument))
            elif opcode.name not in AROUND:
                raise ValueError(f"a pickle with {opcode.name} is refused: only a pickled text is read")
    except (IndexError, UnicodeError, OverflowError, MemoryError) as error:
        raise ValueError(f"a damaged pickle: {error}") from error
    if len(texts) != 1:
        raise ValueError(f"a pickle of {len(texts)} texts is refused: only one pickled text is read")
    return texts[0]


def _case(test: Mapping[str, str], place: str, called: bool) -> Json:
    """A test as ``rewarders.code`` reads it; the result of a function is JSON."""
    if not called:
        return {"input": test["input"], "output": test["output"]}
    try:
        given = [json.loads(line) for line in test["input"].splitlines() if line.strip()]
        return {"input": given, "output": json.loads(test["output"])}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} has a test of a function that is no JSON: {str(test)[:80]!r}") from error


def _function(cells: Cells, starter: str) -> str:
    """``Solution.NAME`` where the starter code has that class, else ``NAME``. Raises DataError."""
    about: Any = cells.find("metadata") or {}
    if isinstance(about, str):
        try:
            about = json.loads(about)
        except (ValueError, RecursionError):
            about = {}
    name = str(about.get("func_name") or "") if isinstance(about, Mapping) else ""
    if not name.isidentifier():
        raise DataError(f"{cells.place} has tests of a function, and column 'metadata' gives no func_name")
    return f"Solution.{name}" if "class Solution" in starter else name
