"""Keeps the eras of the data sources beside the log, in ``RUN/eras.json``: one that has begun holds before any manifest says so."""

from __future__ import annotations

import json
from pathlib import Path

from broker.errors import RunFileError
from broker.messages import Era
from monitoring.files import replace


class KeptEras:
    """``directory`` is the run's. A run that has no such file yet knows what its log says."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "eras.json"

    def known(self, name: str, logged: tuple[Era, ...], cursor: int) -> tuple[Era, ...]:
        """The eras of source ``name``, of which ``cursor`` prompts were fed: ``logged``, as the newest manifest has them, or those that were
        kept since. Raises RunFileError."""
        kept = tuple(era for era in self._read().get(name, ()) if era.start <= cursor)
        return kept if kept and (not logged or kept[-1].start >= logged[-1].start) else logged

    def keep(self, name: str, eras: tuple[Era, ...]) -> None:
        """Called before the first prompt of the last of ``eras`` is fed. Raises RunFileError."""
        found = self._read()
        if eras and found.get(name) != eras:
            replace(self._path, json.dumps({**found, name: eras}, indent=2) + "\n")

    def _read(self) -> dict[str, tuple[Era, ...]]:
        try:
            found = json.loads(self._path.read_bytes())
            return {
                name: tuple(Era(int(start), int(size), int(issue), str(digest)) for start, size, issue, digest in eras)
                for name, eras in found.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RunFileError(
                f"{self._path} cannot be read: {error!r}; remove it, and the newest manifest says how the data sources changed"
            ) from error
