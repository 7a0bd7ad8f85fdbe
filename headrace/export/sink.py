"""What an exporter writes into, whichever dashboard it is for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from broker.errors import RunFileError


class Sink(Protocol):
    """Takes curves in. Values may be infinite or no number at all: they are shown as such, not hidden."""

    def scalars(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Some values at one ``step``, recorded at ``time`` in seconds since the epoch. Steps of a curve rise."""

    def text(self, name: str, text: str) -> None:
        """A text to be shown as it is."""

    def close(self) -> None:
        """Make everything durable."""


OpenSink = Callable[[Path, str, Mapping[str, Any]], Sink]
"""Opens a sink that writes below a directory: for a run of this name, with the tables of its run file."""


def sink_of(kind: str) -> OpenSink:
    """What opens sinks of a kind. Raises RunFileError if its package is not installed."""
    try:
        module = importlib.import_module(f"headrace.export.{kind}")
    except ModuleNotFoundError as error:
        raise RunFileError(
            f"--to {kind} needs {(error.name or kind).partition('.')[0]}, which is not installed: pip install 'headrace[exporters]'"
        ) from None
    opened: OpenSink = module.open_sink
    return opened
