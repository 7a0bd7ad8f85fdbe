"""IFEval: prompts with instructions that a program can check (arXiv 2311.07911).

Columns: ``key``, ``prompt``, ``instruction_id_list`` (``length_constraints:number_words``), ``kwargs`` (a table of arguments for each; tables of Hugging Face fill
the others with null).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from broker.errors import DataError
from learner.data.benchmarks.base import Asked, Benchmark, Cells


@dataclass(frozen=True, kw_only=True)
class IfEval(Benchmark):
    """The row's instructions travel as ``metadata["instructions"]``: a list of ``{"id": ..., "with": {...}}``."""

    judged_by: ClassVar[tuple[str, ...]] = ("rewarders.instructions:Instructions",)

    def asked(self, cells: Cells, number: int) -> Asked:
        names, arguments = cells.need("instruction_id_list"), cells.find("kwargs") or []
        if not _is_list(names) or not all(isinstance(name, str) for name in names):
            raise DataError(
                f"{cells.place} column 'instruction_id_list' is {str(names)[:80]!r}; it must be a list of names"
            )
        if (
            not _is_list(arguments)
            or len(arguments) != len(names)
            or not all(isinstance(a, Mapping) for a in arguments)
        ):
            raise DataError(
                f"{cells.place} column 'kwargs' must hold a table for each of the {len(names)} instructions"
            )
        found: list[Any] = [
            {"id": name, "with": {key: value for key, value in given.items() if value is not None}}
            for name, given in zip(names, arguments, strict=True)
        ]
        return Asked(
            cells.text("prompt"), None, "ifeval", {"instructions": found, "key": str(cells.find("key") or number)}
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
