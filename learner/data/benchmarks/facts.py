"""SimpleQA and what is like it: a short question with a reference answer, which a language model compares (``rewarders.judge:Judge``).

Columns: ``problem`` or ``question``, ``answer`` or ``target``; ``metadata`` (a table, or text that holds one) may have ``topic`` and ``answer_type``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from learner.data.benchmarks.base import Asked, Benchmark, Cells

MOST = 65_536  # characters of a table that is written as text


@dataclass(frozen=True, kw_only=True)
class SimpleQa(Benchmark):
    """The ``kind`` of a row is its topic."""

    judged_by: ClassVar[tuple[str, ...]] = ("rewarders.judge:Judge",)

    def asked(self, cells: Cells, number: int) -> Asked:
        about = _table(cells.find("metadata"))
        kind = str(about.get("topic") or cells.find("topic") or "facts")
        kept = {name: str(about[name]) for name in ("answer_type",) if about.get(name)}
        return Asked(cells.text("problem", "question"), cells.text("answer", "target"), kind, kept)


def _table(value: Any) -> Mapping[str, Any]:
    """A table, also one that is written as a literal of Python or JSON; empty for anything else. Nothing of it is run."""
    if isinstance(value, str) and len(value) <= MOST:
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}
