"""How a plug-in failed: the kind of failure, and the line of the user's own code where it happened."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from broker.errors import HeadraceError, Outage

KINDS = ("timeout", "killed", "error", "outage")
AWAY = frozenset(
    {
        "httpx.TransportError", "requests.exceptions.ConnectionError", "requests.exceptions.Timeout", "urllib.error.URLError",
        "aiohttp.client_exceptions.ClientConnectionError", "urllib3.exceptions.HTTPError", "openai.APIConnectionError",
        "grpc.RpcError",
    }
)  # fmt: skip
"""Errors of widely used clients for an unreachable server; by name, so that none of them is imported."""
ANSWERED = frozenset({"urllib.error.HTTPError"})
"""Errors of those families that are an answer from the server, and so no outage."""
WHY_CHARACTERS = 500
_LIBRARIES = tuple(
    os.path.realpath(path)
    for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *filter(None, map(sysconfig.get_path, ("purelib", "platlib")))}
)  # fmt: skip
_PLUMBING = ("broker/isolation.py", "broker/plugins.py", "rewarders/registry.py")
_DUMPED = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)


class Failed(HeadraceError):
    """One call failed: ``kind`` is ``timeout``, ``killed``, ``error``, or ``outage`` (what the plug-in asks is away)."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(f"{kind}: {why}")
        self.kind, self.why = kind, why


class Frame(NamedTuple):
    """One line of a traceback."""

    file: str
    line: int
    name: str


def kind_of(error: BaseException) -> str:
    """The kind of failure of a plug-in's exception."""
    if isinstance(error, Failed):
        return error.kind
    if isinstance(error, MemoryError):
        return "killed"
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    away = isinstance(error, Outage | ConnectionError) or (names & AWAY and not names & ANSWERED)
    return "outage" if away else "error"


def told(error: BaseException) -> str:
    """An exception in one line that every record can carry, with the line of the plug-in's code that it comes from."""
    source: BaseException = error
    while source.__cause__ is not None:  # the loader's error wraps that of the user's file
        source = source.__cause__
    frames = [Frame(f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(source.__traceback__)]
    words = error.why if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
    return sayable(f"{words[: WHY_CHARACTERS - 100]}{place(frames)}")


def place(frames: Sequence[Frame]) -> str:
    """`` (file.py:12 in name)`` of the innermost frame that is the plug-in's own; empty if there is none.

    ``frames`` go from the outermost to the innermost. Libraries below the plug-in's own code are passed over.
    """
    outside = [f for f in frames if not f.file.startswith("<") and not f.file.endswith(_PLUMBING)]
    own = [f for f in outside if not _in_library(f.file)] or outside[:1]
    return f" ({_short(own[-1].file)}:{own[-1].line} in {own[-1].name})" if own else ""


def dumped(text: str) -> list[Frame]:
    """The frames of what ``faulthandler`` wrote, from the outermost to the innermost."""
    return [Frame(file, int(line), name) for file, line, name in reversed(_DUMPED.findall(text))]


def sayable(text: object) -> str:
    """``text`` with characters replaced that no record can carry, cut to the length of a line."""
    return str(text)[:WHY_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def _in_library(file: str) -> bool:
    return os.path.realpath(file).startswith(_LIBRARIES)


def _short(file: str) -> str:
    """A path relative to where Python looks for modules, or its last two parts."""
    for root in _roots():
        if root and file.startswith(root + os.sep):
            return file[len(root) + 1 :]
    return Path(file).name


def _roots() -> Iterable[str]:
    return sorted({str(Path.cwd()), *sys.path}, key=len, reverse=True)
