"""The interface of an exporter, and how an exporter is found by its name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from broker import plugins
from broker.errors import RunFileError
from broker.spelling import nearest

EXPORTERS = {
    "tensorboard": "headrace.export.tensorboard:TensorBoard",
    "wandb": "headrace.export.wandb:WeightsAndBiases",
}
"""The exporters that have a name of their own; any other one is written as ``file.py:Class`` or ``module:Class``."""


class Sink(Protocol):
    """Receives curves. Values may be infinite or NaN, and are shown as such."""

    def scalars(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Some values at one ``step``, recorded at ``time`` in seconds since the epoch. Steps of a curve rise."""

    def text(self, name: str, text: str) -> None:
        """A text to be shown as it is."""

    def close(self) -> None:
        """Make everything durable."""


class Exporter(Protocol):
    """A frozen dataclass whose fields are its options (``--with NAME=VALUE``).

    It may have ``appends = True`` as a class variable: then a sink that is opened where one was closed goes on with its curves, and
    ``--follow`` begins where the export before has ended. Without it all is written anew.
    """

    def open(self, directory: Path, run: str, config: Mapping[str, Any]) -> Sink:
        """A sink that writes below ``directory``, for a run of this name, with the tables of its run file. Raises RunFault."""


def exporter_of(name: str, options: Mapping[str, Any], base: Path) -> Exporter:
    """The exporter of this name, or the class of a file beside the run file (``base`` is its directory).

    Raises RunFileError if there is none, its package is not installed, or it has no such option.
    """
    use = EXPORTERS.get(name, name)
    if name in EXPORTERS:
        _installed(name, use.partition(":")[0])
    elif ":" not in name:
        raise RunFileError(
            f"--to {name!r}: use {', '.join(EXPORTERS)}, or file.py:Class{nearest(name, list(EXPORTERS))}"
        )
    else:
        plugins.check(use, list(options), base, f"--to {name}:")
    exporter: Exporter = plugins.build(use, options, base, f"--to {name}:")
    if not callable(getattr(exporter, "open", None)):
        raise RunFileError(f"--to {name}: {use} is no exporter: it has no method open(directory, run, config)")
    return exporter


def _installed(name: str, module: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RunFileError(
            f"--to {name} needs {(error.name or name).partition('.')[0]}, which is not installed: pip install 'headrace[exporters]'"
        ) from None
