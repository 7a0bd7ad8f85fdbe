"""The directory that an export writes: locked by one export at a time, and created anew or continued. Other directories
are refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from broker.errors import RunFault, RunFileError
from headrace.export.curves import Point
from headrace.export.sink import Sink

MARK = ".headrace-export"
"""A file that says that the directory is an export's own, to be removed and made anew; in it the place up to which it is whole."""


@dataclass(slots=True)
class Place:
    """How far an export has come that was closed: the offset in the steps topic, the time of the topic's first record (of another
    run's it is another), the newest step of each series, and the stages that are reinforced."""

    offset: int = 0
    began: float = 0.0
    newest: dict[str, int] = field(default_factory=dict)
    reinforced: list[int] = field(default_factory=list)


class Output:
    """A directory of growing curves. Sinks cannot remove points, so a point that comes late, or again after a redo,
    rebuilds it all.
    """

    def __init__(self, directory: Path, opened: Callable[[Path], Sink]) -> None:
        self.directory, self._opened = directory, opened
        self.place = Place()
        self._sink: Sink | None = None
        self.count = 0

    def place_there(self) -> Place | None:
        """How far the export has come that was closed here; None if it was killed, or there was none."""
        return _place(self.directory / MARK)

    def resume(self) -> bool:
        """Go on where the export before this one has ended, if it was closed."""
        place = self.place_there()
        if place is None:
            return False
        self.place = place
        (self.directory / MARK).write_text("")  # until it is closed: a kill may lose what the sink still holds
        self._sink = self._opened(self.directory)
        return True

    def renew(self, points: Iterable[Point]) -> None:
        """Write all points, which are in order, into a fresh directory."""
        self._close_sink()
        remove(self.directory)
        self.directory.mkdir(parents=True)
        (self.directory / MARK).touch()
        self._sink = self._opened(self.directory)
        self.place.newest, self.count = {}, 0
        self.add(points)

    def is_late(self, point: Point) -> bool:
        """Whether its curve already has a point at the same or a later step."""
        return point.step <= self.place.newest.get(point.series, -1)

    def add(self, points: Iterable[Point]) -> None:
        assert self._sink is not None
        for point in points:
            self._sink.scalars(point.step, point.values, point.time)
            self.place.newest[point.series] = max(point.step, self.place.newest.get(point.series, point.step))
            self.count += 1

    def close(self, whole: bool = False) -> None:
        """Make it durable; ``whole`` also leaves word of the place, for an export that goes on from it."""
        if self._sink is not None:
            self._close_sink()
            if whole:
                (self.directory / MARK).write_text(json.dumps(asdict(self.place)))

    def _close_sink(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None


def _place(path: Path) -> Place | None:
    """What a closed export has left; None where it has not, or something else lies there."""
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
        return Place(int(told["offset"]), float(told["began"]), dict(told["newest"]), list(told["reinforced"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove(directory: Path) -> None:
    """Remove a directory. What a kill leaves of it is under another name, and is removed by the next export."""
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with suppress(FileNotFoundError):
        directory.rename(old)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def sole_export(out: Path) -> Iterator[None]:
    """Hold the output directory while the block runs.

    Raises RunFault if another export holds it, RunFileError if there lies what no export has made: it would be lost.
    """
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise RunFileError(f"--out {out} holds what is no export's; name a new directory or an empty one")
    out.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(out.with_name(f".{out.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFault(f"{out} is being written by another export; end it, or name another --out") from None
        yield
    finally:
        os.close(handle)
