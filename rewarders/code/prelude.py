"""Imports that run before the program of a function, as on LeetCode, but only of names that the program mentions.

Names that would hide builtins (``math.pow``) are not imported. A name that several modules have comes from the first in
OPEN.
"""

from __future__ import annotations

import builtins
import importlib
import re
from functools import lru_cache

MODULES = (
    "collections", "functools", "heapq", "itertools", "bisect", "math", "typing", "copy", "datetime", "json", "operator", "random", "re",
    "statistics", "string", "sys", "time",
)  # fmt: skip
OPEN = ("collections", "functools", "heapq", "itertools", "bisect", "math", "typing", "copy", "datetime", "string")
"""Modules whose public names can be used without the module's name."""
WORD = re.compile(r"[A-Za-z_]\w*")
IMPORT = re.compile(r"^[ \t]*(?:from|import)[ \t]+([\w.]+(?:[ \t]*,[ \t]*[\w.]+)*)", re.MULTILINE)


@lru_cache(maxsize=1)
def _owners() -> dict[str, str]:
    """Each public name of the OPEN modules, with the module that provides it."""
    owners: dict[str, str] = {}
    for module in OPEN:
        loaded = importlib.import_module(module)
        for name in getattr(loaded, "__all__", [n for n in vars(loaded) if not n.startswith("_")]):
            if not hasattr(builtins, name):
                owners.setdefault(name, module)
    return owners


def prelude_of(program: str) -> str:
    """Import lines for the modules and names that ``program`` mentions."""
    words = set(WORD.findall(program))
    lines = [f"import {module}" for module in MODULES if module in words]
    owners = _owners()
    lines += [f"from {owners[word]} import {word}" for word in sorted(words) if word in owners and word not in MODULES]
    return "\n".join(lines)


def imported(program: str) -> set[str]:
    """The top-level modules that the import lines of ``program`` name."""
    return {name.split(".")[0].strip() for line in IMPORT.findall(program) for name in line.split(",")}
